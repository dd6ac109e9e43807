"""Selection of exactly the k largest of each row; of equal ones those at the lowest positions.

Fast by thresholds, never by sorting.
"""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Scope = Literal["batch", "sample"]
Positions = NDArray[np.intp]
_GUESS_FROM = 1 << 13  # elements in a row; from here on a sample gives a threshold first


def rows_of(shape: tuple[int, ...], scope: Scope) -> tuple[int, int]:
    """Return (rows, elements in each) among which k are chosen: the whole tensor, or each sample of a batch."""
    if scope == "batch" or not shape:
        return 1, math.prod(shape)
    return shape[0], math.prod(shape[1:])


def kept_of(elements: int, r: float) -> int:
    """Return k = d − ⌈r·d⌉ of d elements, with r as the decimal that it is written as; at least 1 if d > 0."""
    return max(1, elements - math.ceil(Fraction(Decimal(repr(r))) * elements)) if elements else 0


def largest(rows: NDArray[np.floating[Any]], k: int) -> Positions:
    """Return the (R·k,) positions in the flattened (R, d) array, ascending."""
    count, width = rows.shape
    if k == width:
        return np.arange(count * width)
    if width >= _GUESS_FROM:
        return np.concatenate([_by_sample(row, k) + number * width for number, row in enumerate(rows)])
    threshold = np.partition(rows, width - k, axis=1)[:, width - k, None]
    above, at = rows > threshold, rows == threshold
    wanted = k - above.sum(axis=1, keepdims=True)
    if (at.sum(axis=1, keepdims=True) > wanted).any():
        at &= at.cumsum(axis=1) <= wanted
    return np.flatnonzero(above | at)


def _by_sample(row: NDArray[np.floating[Any]], k: int) -> Positions:
    """Rule out most elements by a sample's threshold, and select from the rest. A bad guess costs only time."""
    sample = row[:: min(64, len(row) // 1024)]
    expected = k * len(sample) / len(row)
    rank = min(len(sample), math.ceil(expected + 4 * math.sqrt(expected) + 8))
    guess = np.partition(sample, len(sample) - rank)[len(sample) - rank]
    candidates = np.flatnonzero(row >= guess)
    if len(candidates) < k or len(candidates) >= len(row) // 2:
        candidates = np.arange(len(row))
    values = row[candidates]
    threshold = np.partition(values, len(values) - k)[len(values) - k]
    above, at = values > threshold, values == threshold
    at[np.flatnonzero(at)[k - np.count_nonzero(above) :]] = False
    found: Positions = candidates[above | at]
    return found
