"""Uniform quantisation (QU): b bits an element, ⌈b·numel/8⌉ bytes.

Parameters: least and greatest element in the tensor's precision. `ends`: L = 2^b − 1 steps with exact end points, q =
round((x − min)·L/(max − min)) half to even, x̂ = min + q·(max − min)/L. `middle`: 2^b equal bins, x̂ = the bin's
mid-point (Zheng et al., RandTop-k's repository); end points are not exact then. `stochastic` rounding (QSGD, Alistarh
et al. 2017) draws up or down so that `ends` is unbiased. Equal elements: all codes 0, x̂ exact.
"""

from __future__ import annotations

import math
import struct
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from sl_common.codec.bits import BLOCK, ByteArray, pack, packed_nbytes
from sl_common.codec.numbers import Floats, checked, extremes, flat, largest_of, look_up, table_of
from sl_common.codec.packed import Coding, Layout, Packed, make_layout
from sl_common.errors import WireError
from sl_common.seeds import numpy_generator
from sl_common.value import Value

_HUGE = 1e300
_SANE = 1e30  # largest magnitude that float32 arithmetic handles without overflow


class Uniform(Value):
    """Equal steps between the least and the greatest element."""

    kind: Literal["uniform"] = Field(
        "uniform", description="Uniform quantisation in equal steps between the least and the greatest element."
    )
    bits: int = Field(8, ge=1, le=8, description="Bits in the code of each element.")
    point: Literal["ends", "middle"] = Field(
        "ends", description="Levels that include both end points, or mid-points of equal bins."
    )
    rounding: Literal["nearest", "stochastic"] = Field(
        "nearest", description="Rounding: to the nearest level, or at random without bias."
    )
    uses_like: ClassVar[bool] = False

    def sizes(self, dtype: torch.dtype, shape: tuple[int, ...]) -> tuple[int, int]:  # noqa: ARG002  (the interface)
        """Return ⌈b·numel/8⌉."""
        nbytes = packed_nbytes(math.prod(shape), self.bits)
        return nbytes, nbytes

    def encode(self, x: Tensor, coding: Coding) -> Packed:
        """Encode all elements. Raise Diverged on NaN or Inf."""
        low, high = extremes(x, self.kind)
        codes = self._codes(flat(x), low, high, coding) if high > low else np.zeros(x.numel(), np.uint8)
        data = pack(codes, self.bits)
        layout = make_layout(self.kind, x, len(data), _params(x.dtype).pack(low, high))
        return Packed(layout=layout, data=data.data)

    def _codes(self, values: Floats, low: float, high: float, coding: Coding) -> ByteArray:
        steps = (1 << self.bits) - (1 if self.point == "ends" else 0)
        draw = numpy_generator(*coding.draw) if self.rounding == "stochastic" else None
        if values.dtype == np.float32 and max(-low, high) < _SANE and high - low > 1 / _SANE:
            return self._levels(values, np.float32(low), high, np.float32(steps / (high - low)), draw)
        half = 0.5 if max(-low, high) > _HUGE else 1.0  # halved so that no difference overflows
        wide, low, high = values.astype(np.float64) * half, low * half, high * half
        return self._levels((wide - low) / (high - low), np.float64(0), 1.0, np.float64(steps), draw)

    def _levels(self, values: Floats, low: Any, high: float, scale: Any, draw: np.random.Generator | None) -> ByteArray:
        """Return (x − low)·scale as whole numbers."""
        codes = np.empty(len(values), np.uint8)
        scratch = np.empty(min(BLOCK, len(values)), values.dtype)
        for start in range(0, len(values), BLOCK):
            block = values[start : start + BLOCK]
            level = scratch[: len(block)]
            np.subtract(block, low, out=level)
            np.multiply(level, scale, out=level)
            if self.point == "ends" and draw is None:
                np.rint(level, out=level)
            else:
                if self.point == "ends" and draw is not None:
                    np.copyto(level, np.inf, where=block >= high)  # the ends stay exact for any draw
                    np.add(level, draw.random(len(level), dtype=values.dtype.type), out=level)
                np.floor(level, out=level)
            np.minimum(level, (1 << self.bits) - 1, out=level)
            np.copyto(codes[start : start + len(block)], level, casting="unsafe")
        return codes

    def check(self, layout: Layout) -> None:
        """Check that the byte count is the tensor's, and the end points are finite and in order."""
        params = _params(layout.dtype)
        checked(self.kind, layout, packed_nbytes(math.prod(layout.shape), self.bits), params.size)
        low, high = params.unpack(layout.params)
        top = largest_of(layout.dtype)
        if not -top <= low <= high <= top:
            raise WireError(f"codec uniform: header has end points {low} and {high}")

    def decode(self, packed: Packed, coding: Coding) -> Tensor:  # noqa: ARG002  (the interface)
        """Return the decoded tensor, from a table of 2^b values."""
        layout = packed.layout
        low, high = _params(layout.dtype).unpack(layout.params)
        codes = np.arange(1 << self.bits)
        share = codes / (len(codes) - 1) if self.point == "ends" else (codes + 0.5) / len(codes)
        width = high - low
        values = low + share * width if math.isfinite(width) else low * (1 - share) + high * share
        if self.point == "ends":
            values[-1] = high
        return look_up(table_of(values, layout.dtype), packed.data, self.bits, layout)


def _params(dtype: torch.dtype) -> struct.Struct:
    return struct.Struct("<dd" if dtype == torch.float64 else "<ff")
