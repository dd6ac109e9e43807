"""8-bit floating point: one byte an element, numel bytes, 3 bytes of parameters.

Chen, Li & Chakrabarti, "Communication and Computation Reduction for Split Learning using Asynchronous Training", SiPS
2021 (the details of its quantiser could not be read; these are ours). A code is sign, e exponent bits and m = 7 − e
mantissa bits with a bias β: 2^(E−β)·(1 + M/2^m), or 2^(1−β)·M/2^m for E = 0. Round to nearest even, saturating; −0 is
never written.

`searched`: every pattern is a finite number; e ∈ 2..5 and β ∈ {β₀−1, β₀, β₀+1} are chosen on each encode by the least
squared error, where β₀ is the largest bias whose greatest number is at least max|x|. Up to 4096 elements it is the
error of all of them. Of a larger tensor it is that of a strided sample and of all the largest elements, and the
clipping error of β₀+1 is summed exactly over all elements. Ties go to the larger e, then to β₀. `e4m3`, `e5m2`: the
OCP formats (greatest 448 and 57344, NaN and Inf never written) times the power of two that brings max|x| just under
the greatest number; the power is written as a shift of β. Parameters: e (uint8), β (int16).
"""

from __future__ import annotations

import math
import struct
from functools import lru_cache
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from sl_common.codec.bits import BLOCK, ByteArray
from sl_common.codec.float8_search import search, widest_bias
from sl_common.codec.numbers import Floats, checked, extremes, flat, look_up, table_of
from sl_common.codec.packed import Coding, Layout, Packed, make_layout
from sl_common.errors import WireError
from sl_common.value import Value

_PARAMS = struct.Struct("<Bh")
_BIASES = range(-1200, 1201)  # enough for every float64
_TABLE_FROM = 2048  # elements; from here on a table by upper halves pays
_OCP = {"e4m3": (4, 0x7E), "e5m2": (5, 0x7B)}  # exponent bits, greatest code


class Float8(Value):
    """8-bit floating point, the format searched for each tensor or fixed to one of the OCP's."""

    kind: Literal["float8"] = Field("float8", description="8-bit floating point, one byte an element.")
    format: Literal["searched", "e4m3", "e5m2"] = Field(
        "searched", description="Format searched for each tensor, or one of the OCP's formats."
    )
    uses_like: ClassVar[bool] = False

    def sizes(self, dtype: torch.dtype, shape: tuple[int, ...]) -> tuple[int, int]:  # noqa: ARG002  (the interface)
        """Return one byte an element."""
        return math.prod(shape), math.prod(shape)

    def encode(self, x: Tensor, coding: Coding) -> Packed:  # noqa: ARG002  (the interface)
        """Encode all elements. Raise Diverged on NaN or Inf."""
        low, high = extremes(x, self.kind)
        values = flat(x)
        bits, bias = self._format(values, max(-low, high))
        codes = _codes(values, bits, bias, self._top())
        layout = make_layout(self.kind, x, len(codes), _PARAMS.pack(bits, bias))
        return Packed(layout=layout, data=codes.data)

    def _format(self, values: Floats, greatest: float) -> tuple[int, int]:
        """Return (exponent bits, bias) for these values."""
        if self.format == "searched":
            return search(values, greatest)
        bits, top = _OCP[self.format]
        return bits, widest_bias(bits, top, greatest)

    def _top(self) -> int:
        return 0x7F if self.format == "searched" else _OCP[self.format][1]

    def check(self, layout: Layout) -> None:
        """Check that there is one byte an element, and a format that this codec writes."""
        checked(self.kind, layout, math.prod(layout.shape), _PARAMS.size)
        bits, bias = _PARAMS.unpack(layout.params)
        wanted = range(2, 6) if self.format == "searched" else (_OCP[self.format][0],)
        if bits not in wanted or bias not in _BIASES:
            raise WireError(f"codec float8, format {self.format}: header has {bits} exponent bits and bias {bias}")

    def decode(self, packed: Packed, coding: Coding) -> Tensor:  # noqa: ARG002  (the interface)
        """Return the decoded tensor, from a table of 256 values. Raise WireError for codes of NaN or Inf."""
        bits, bias = _PARAMS.unpack(packed.layout.params)
        top = self._top()
        if top < 0x7F and _has_above(packed, top):
            raise WireError(f"codec float8, format {self.format}: a code for NaN or Inf")
        return look_up(_decoding(bits, bias, packed.layout.dtype), packed.data, 8, packed.layout)


def _has_above(packed: Packed, top: int) -> bool:
    """Return True if any code without its sign is greater than `top`.

    Eight codes are compared at a time, by the carry into the sign's place.
    """
    codes = np.frombuffer(packed.data, np.uint8)
    whole = len(codes) & ~7
    words = codes[:whole].view(np.uint64)
    seen = np.uint64(0)
    for start in range(0, len(words), BLOCK):
        carried = (words[start : start + BLOCK] & _each(0x7F)) + _each(0x7F - top)
        seen |= np.bitwise_or.reduce(carried)
    return bool(seen & _each(0x80)) or bool(((codes[whole:] & 0x7F) > top).any())


def _each(byte: int) -> np.uint64:
    """Return a word of eight times this byte."""
    return np.uint64(byte * 0x0101_0101_0101_0101)


@lru_cache(maxsize=64)
def _decoding(bits: int, bias: int, dtype: torch.dtype) -> Tensor:
    """Return the 256 values of a format; larger numbers than the type's greatest saturate."""
    return table_of(_values(bits, bias), dtype)


def _values(bits: int, bias: int) -> NDArray[np.float64]:
    mantissa_bits = 7 - bits
    exponent, mantissa = np.divmod(np.arange(128), 1 << mantissa_bits)
    significand = np.where(exponent > 0, (1 << mantissa_bits) + mantissa, mantissa)
    with np.errstate(over="ignore"):
        positive = np.ldexp(significand.astype(np.float64), np.maximum(exponent, 1) - bias - mantissa_bits)
    return np.concatenate([positive, -positive])


# --- codes


def _codes(values: Floats, bits: int, bias: int, top: int) -> ByteArray:
    """Return the codes of finite values, from a table by each float32's upper half if that is exact and pays."""
    normal = 1 - bias - (7 - bits) >= -126 - 5  # upper halves resolve the format's smallest steps
    if values.dtype != np.float32 or len(values) < _TABLE_FROM or not normal:
        return _rounded(values.astype(np.float64), bits, bias, top)
    out = np.empty(len(values), np.uint8)
    table, words = _encoding(bits, bias, top), values.view(np.uint32)
    scratch = np.empty(min(BLOCK, len(words)), np.uint32)
    for start in range(0, len(words), BLOCK):
        block = words[start : start + BLOCK]
        upper = scratch[: len(block)]
        np.bitwise_and(block, 0xFFFF, out=upper)  # rounded to odd: the last bit says whether anything was cut off
        np.add(upper, 0xFFFF, out=upper)
        np.bitwise_or(upper, block, out=upper)
        np.right_shift(upper, 16, out=upper)
        np.take(table, upper, out=out[start : start + len(block)], mode="clip")
    return out


@lru_cache(maxsize=128)
def _encoding(bits: int, bias: int, top: int) -> ByteArray:
    """Return the code of each float32 by its upper 16 bits.

    These are sign, exponent and 7 bits, of which 5 + 2 suffice to round to odd and then correctly.
    """
    halves = np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)
    finite = np.nan_to_num(halves.view(np.float32), nan=0.0)
    return _rounded(finite.astype(np.float64), bits, bias, top)


def _rounded(values: NDArray[np.float64], bits: int, bias: int, top: int) -> ByteArray:
    """Return the codes, by arithmetic."""
    magnitudes = np.abs(values)
    mantissa_bits = 7 - bits
    powers = np.maximum(np.frexp(magnitudes)[1] - 1, 1 - bias)
    steps = np.rint(np.ldexp(magnitudes, mantissa_bits - powers))
    codes = np.where(steps > 0, np.minimum((powers + (bias - 1)) * (1 << mantissa_bits) + steps, top), 0).astype(
        np.uint8
    )
    codes[(values < 0) & (codes > 0)] |= 0x80
    return codes
