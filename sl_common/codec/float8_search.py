"""Search for the 8-bit format that suits a tensor: 12 candidates, and the one of least squared error.

Law: elements that the sample missed are not clipped. A candidate's score is its squared error on the elements up to
its greatest number ("top"), estimated, plus Σ (|x| − top)² over all elements above it, exact. The estimate has two
parts. The largest elements, which make up most of the error of a heavy-tailed tensor, are all used (if they are few),
the others by a strided sample. A tensor no larger than the sample is used as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sl_common.codec.numbers import Floats
from sl_common.tensors import stride

SAMPLE = 4096  # elements of the strided sample
TAIL = 1024  # approximate number of the largest elements used beside it; never more than SAMPLE
_MAX_BLOCK = 1 << 15  # elements read at a time, so that they stay in the cache
_Doubles = NDArray[np.float64]
_FINITE = 0x7F  # the greatest code if every pattern is a number


def widest_bias(bits: int, top: int, greatest: float) -> int:
    """Return the largest bias at which the value of code `top` is at least `greatest`; a usual one for 0."""
    if greatest == 0.0:
        return (1 << bits - 1) - 1
    exponent, mantissa = divmod(top, 1 << 7 - bits)
    significand, power = math.frexp(greatest)  # significand in [.5, 1)
    own = (1 + mantissa / (1 << 7 - bits)) / 2  # significand of the greatest number; its power is exponent − bias + 1
    return exponent + 1 - power - (significand > own)


def search(values: Floats, greatest: float) -> tuple[int, int]:
    """Return (exponent bits, bias) of the candidate of least score; ties go to the larger e, then to β₀."""
    if greatest == 0.0:
        return 5, widest_bias(5, _FINITE, greatest)
    shift = math.frexp(greatest)[1]  # all near 1, so that no square underflows or overflows
    widest = {bits: widest_bias(bits, _FINITE, greatest) for bits in (5, 4, 3, 2)}
    lowest = min(_top(bits, bias + 1 + shift) for bits, bias in widest.items())
    seen = _look(values, shift, lowest)
    scores = {
        (bits, bias - below): seen.error(bits, bias - below + shift)
        for bits, bias in widest.items()
        for below in (0, 1)
    }
    for bits, bias in widest.items():
        scores[bits, bias + 1] = seen.clipping_error(bits, bias + 1 + shift, min(scores.values()))
    ranked = [(bits, bias + by) for bits, bias in widest.items() for by in (0, -1, 1)]
    return min(ranked, key=lambda candidate: scores[candidate])


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Part:
    """Some magnitudes of a tensor, scaled to below 1; each stands for `weight` elements."""

    magnitudes: _Doubles
    powers: _Doubles  # of two: for each magnitude the largest that is not greater
    weight: float

    def error(self, bits: int, bias: int) -> float:
        """Return the estimated squared error of this part's elements, without those above the format's top."""
        steps = np.maximum(self.powers, math.ldexp(1.0, 1 - bias)) * 2.0 ** (bits - 7)
        differences = self.magnitudes - np.rint(self.magnitudes / steps) * steps
        top = _top(bits, bias)
        if top < 1.0:
            differences[self.magnitudes > top] = 0.0
        return self.weight * _squares(differences)

    def excess(self, top: float) -> float:
        """Return Σ (|x| − top)² over the elements of this part itself that are above top."""
        return _squares(self.magnitudes[self.magnitudes > top] - top)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Seen:
    """The elements of a tensor that the search uses; numbers are scaled as in its parts."""

    parts: tuple[_Part, ...]  # of different elements; together they stand for all
    large: Floats  # unscaled magnitudes: all elements that a candidate may clip
    shift: int  # a scaled number is the original times 2^−shift

    def error(self, bits: int, bias: int) -> float:
        """Return the estimated squared error of the elements that are not above the format's top."""
        return sum(part.error(bits, bias) for part in self.parts)

    def clipping_error(self, bits: int, bias: int, at_most: float) -> float:
        """Return that error plus the exact error of the elements above the top.

        Infinite if a part already shows that it exceeds `at_most`.
        """
        top, estimated = _top(bits, bias), self.error(bits, bias)
        if estimated + sum(part.excess(top) for part in self.parts) > at_most:
            return math.inf
        return estimated + sum(
            _squares(_scaled(magnitudes, self.shift) - top)
            for magnitudes in _above(self.large, math.ldexp(top, self.shift))
        )


def _top(bits: int, bias: int) -> float:
    """Return the greatest number of a format."""
    return math.ldexp(2 - 2.0 ** (bits - 7), (1 << bits) - 1 - bias)


def _look(values: Floats, shift: int, lowest: float) -> _Seen:
    """Choose the elements that the search uses; `lowest`: no candidate's top is below it."""
    step = stride(len(values), SAMPLE)
    sample = np.abs(values[::step])
    if step == 1:
        return _Seen(parts=(_part(sample, shift, 1.0),), large=sample, shift=shift)
    above = max(1, TAIL * len(sample) // len(values))  # of the sample
    limit = min(float(np.partition(sample, -above)[-above]), math.ldexp(lowest, shift))
    large = np.concatenate(list(_above(values, limit)))
    few = large[:: stride(max(1, len(large)), SAMPLE)]
    rest = sample[sample <= limit]
    parts = [_part(few, shift, len(large) / max(1, len(few)))]
    if len(rest):
        parts.append(_part(rest, shift, (len(values) - len(large)) / len(rest)))
    return _Seen(parts=tuple(parts), large=large, shift=shift)


def _above(values: Floats, limit: float) -> Iterator[Floats]:
    """Yield all magnitudes above a limit, block by block."""
    scratch, chosen = (
        np.empty(min(_MAX_BLOCK, len(values)), values.dtype),
        np.empty(min(_MAX_BLOCK, len(values)), np.bool_),
    )
    for start in range(0, len(values), _MAX_BLOCK):
        block = values[start : start + _MAX_BLOCK]
        magnitudes = np.abs(block, out=scratch[: len(block)])
        yield magnitudes[np.greater(magnitudes, limit, out=chosen[: len(block)])]


def _squares(differences: _Doubles) -> float:
    return float(differences @ differences)


def _scaled(magnitudes: Floats, shift: int) -> _Doubles:
    return np.ldexp(magnitudes.astype(np.float64), -shift)


def _part(magnitudes: Floats, shift: int, weight: float) -> _Part:
    scaled = _scaled(magnitudes, shift)
    return _Part(magnitudes=scaled, powers=np.ldexp(1.0, np.frexp(scaled)[1] - 1), weight=weight)
