"""Which samples of a training set are kept when it is read: told by the labels, which are read first and are small."""

from __future__ import annotations

from collections.abc import Callable

from sl_common.partition import Indices, Labels

Pick = Callable[[Labels], Indices]  # from the labels of all samples to those to keep, in rising order
