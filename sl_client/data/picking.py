"""The choice of the samples that are kept when a set is read, by the labels, which are small and are read first."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sl_common.partition import Indices, Labels

SampleFilter = Callable[[Labels], Indices]  # from the labels of all samples to those to keep, in rising order


def keep_all(labels: Labels) -> Indices:
    """Return the indices of all samples."""
    return np.arange(len(labels), dtype=np.int64)
