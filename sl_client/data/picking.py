"""Which samples of a set are kept when it is read: told by the labels, which are read first and are small."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sl_common.partition import Indices, Labels

SampleFilter = Callable[[Labels], Indices]  # from the labels of all samples to those to keep, in rising order


def everything(labels: Labels) -> Indices:
    """All of them."""
    return np.arange(len(labels), dtype=np.int64)
