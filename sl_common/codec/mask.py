"""Mask-encoded sparsification (MS): the k largest elements in full, all others as b-bit codes of their magnitude.

Zhou et al., "Mask-Encoded Sparsification: Mitigating Biased Gradients in Communication-Efficient Split Learning", ECAI
2024. With T the smallest kept magnitude and L = 2^b − 1: code L for a kept element, else min(round(x·L/T), L − 1),
decoded as code·T/L. T is not sent: it is the least of the kept values as they arrive. `b = 1` is Top-k with a bitmap.
Deviations, since paper and code differ: round and clamp (`rounding = "floor"` as in the paper's text), exactly k by the
lowest positions, T ≤ 0 makes every other code 0.

Bytes: w·k + ⌈b·d/8⌉ [+ ⌈d/8⌉ with signs], w = 4 or 2, d elements, k = d − ⌈r·d⌉ (of each sample with scope "sample"),
at least 1. The body is values, codes, signs. Parameters: k of each row (uint64), 1 if there are signs (uint8).
"""

from __future__ import annotations

import struct
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from sl_common.codec.bits import BLOCK, ByteArray, pack, packed_nbytes, unpack
from sl_common.codec.numbers import checked, extremes, flat32, from_float32
from sl_common.codec.packed import Coding, Layout, Packed, make_layout
from sl_common.codec.select import Positions, Scope, kept_of, largest, rows_of
from sl_common.codec.sparse import Precision, read_values, write_values
from sl_common.errors import WireError
from sl_common.value import Value

_PARAMS = struct.Struct("<QB")
_WIDE = 1 << 9  # elements in a row; from here on a table for each row pays
_TINY = np.float32(1e-30)  # below this, L/T overflows


class Mask(Value):
    """Sparsity ratio `r`, mask bits `b`.

    `signed` adds a plane of signs and selects by magnitude; by default where a tensor has negative elements. With
    `signed = false` negative elements are never kept before others and decode to 0.
    """

    kind: Literal["mask"] = Field(
        "mask", description="Mask-encoded sparsification (MS): the largest elements in full, all others as short codes."
    )
    r: float = Field(0.99, ge=0, lt=1, description="Sparsity ratio: fraction of the elements that is not kept in full.")
    b: int = Field(2, ge=1, le=8, description="Mask bits: bits in the code of each element.")
    signed: bool | None = Field(
        None, description="Send signs and select by magnitude; by default where a tensor has negative elements."
    )
    scope: Scope = Field("batch", description="Choose the k largest within the whole batch, or within each sample.")
    rounding: Literal["round", "floor"] = Field(
        "round", description="Rounding of the codes: to the nearest, or down as in the paper's text."
    )
    values: Precision = Field("float32", description="Precision of the kept values.")
    uses_like: ClassVar[bool] = False

    def sizes(self, dtype: torch.dtype, shape: tuple[int, ...]) -> tuple[int, int]:  # noqa: ARG002  (the interface)
        """Return the sizes without and with signs, unless the configuration decides."""
        return self._nbytes(shape, self.signed or False), self._nbytes(shape, self.signed is not False)

    def _nbytes(self, shape: tuple[int, ...], signed: bool) -> int:
        rows, width = rows_of(shape, self.scope)
        kept = rows * kept_of(width, self.r) * (4 if self.values == "float32" else 2)
        return kept + packed_nbytes(rows * width, self.b) + (packed_nbytes(rows * width, 1) if signed else 0)

    def encode(self, x: Tensor, coding: Coding) -> Packed:  # noqa: ARG002  (the interface)
        """Encode values, codes, signs. Raise Diverged on NaN or Inf."""
        low, _ = extremes(x, self.kind)
        signed = low < 0 if self.signed is None else self.signed
        rows, width = rows_of(tuple(x.shape), self.scope)
        k = kept_of(width, self.r)
        plain = flat32(x).reshape(rows, width)
        magnitudes = np.abs(plain) if signed else plain
        at = largest(magnitudes, k)
        data, kept = write_values(magnitudes.reshape(-1)[at], self.values)
        codes = self._codes(magnitudes, kept.reshape(rows, k).min(axis=1, initial=np.inf))
        codes[at] = (1 << self.b) - 1
        parts = [data, pack(codes, self.b)] + (
            [np.packbits(plain.reshape(-1) < 0, bitorder="little")] if signed else []
        )
        body = np.concatenate(parts)
        layout = make_layout(self.kind, x, len(body), _PARAMS.pack(k, signed))
        return Packed(layout=layout, data=body.data)

    def _codes(self, magnitudes: NDArray[np.float32], smallest: NDArray[np.float32]) -> ByteArray:
        """Return (R·d,) codes below L of (R, d) magnitudes and (R,) thresholds."""
        rows, width = magnitudes.shape
        codes = np.empty((rows, width), np.uint8)
        step = max(1, BLOCK // max(width, 1))
        for top in range(0, rows, step):
            for left in range(0, width, BLOCK):
                here = np.s_[top : top + step, left : left + BLOCK]
                codes[here] = self._levels(magnitudes[here], smallest[top : top + step, None])
        return codes.reshape(-1)

    def _levels(self, block: NDArray[np.float32], smallest: NDArray[np.float32]) -> NDArray[np.floating[Any]]:
        highest = (1 << self.b) - 1
        precise = np.float32 if smallest.size and (smallest >= _TINY).all() else np.float64
        scale = np.divide(highest, smallest, out=np.zeros_like(smallest, precise), where=smallest > 0, dtype=precise)
        with np.errstate(over="ignore"):  # clipped in the next line
            level: NDArray[np.floating[Any]] = np.multiply(block, scale, dtype=precise)
        np.clip(level, 0, highest - 1 if self.rounding == "round" else highest, out=level)
        (np.rint if self.rounding == "round" else np.floor)(level, out=level)
        np.minimum(level, highest - 1, out=level)
        return level

    def check(self, layout: Layout) -> None:
        """Check that k and the byte count are those of this shape."""
        params = layout.params if len(layout.params) == _PARAMS.size else bytes(_PARAMS.size)
        k, signed = _PARAMS.unpack(params)
        checked(self.kind, layout, self._nbytes(layout.shape, bool(signed)), _PARAMS.size)
        own = kept_of(rows_of(layout.shape, self.scope)[1], self.r)
        if k != own or signed not in (0, 1) or (self.signed is not None and signed != self.signed):
            raise WireError(
                f"codec mask: header has k = {k} and signs {signed}, this run k = {own} and signed = {self.signed}"
            )

    def decode(self, packed: Packed, coding: Coding) -> Tensor:  # noqa: ARG002  (the interface)
        """Return the decoded tensor.

        Raise WireError if the codes do not mark k elements of each row, or values are not finite.
        """
        layout = packed.layout
        k, signed = _PARAMS.unpack(layout.params)
        rows, width = rows_of(layout.shape, self.scope)
        if rows * width == 0:
            return torch.empty(layout.shape, dtype=layout.dtype)
        body = np.frombuffer(packed.data, np.uint8)
        kept, rest = read_values(self.kind, body, rows * k, self.values)
        codes = unpack(rest, self.b, rows * width)
        at = self._marked(codes, rows, width, k)
        smallest = np.maximum(kept.reshape(rows, k).min(axis=1), 0)
        out = np.empty(rows * width, np.float32)
        (self._narrow if width < _WIDE else self._wide)(codes.reshape(rows, width), smallest, out.reshape(rows, width))
        out[at] = kept
        if signed:
            negative = unpack(rest[packed_nbytes(rows * width, self.b) :], 1, rows * width)
            np.negative(out, out=out, where=negative.view(np.bool_))
        return from_float32(out, layout)

    def _wide(self, codes: ByteArray, smallest: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        """Fill (R, d) values from (R, d) codes and (R,) thresholds, one row after another."""
        table = np.zeros(256, np.float32)
        for row in range(len(codes)):
            table[: 1 << self.b] = self._table(smallest[row : row + 1])[0]
            for start in range(0, codes.shape[1], BLOCK):
                here = np.s_[row, start : start + BLOCK]
                np.take(table, codes[here], out=out[here], mode="clip")

    def _narrow(self, codes: ByteArray, smallest: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        """Fill the values if rows are many and short.

        As many rows at a time as the cache holds, since a peer chooses the number of rows.
        """
        step = max(1, BLOCK >> max(self.b, 3))
        for top in range(0, len(codes), step):
            tables = self._table(smallest[top : top + step])
            places = codes[top : top + step] + (np.arange(len(tables)) << self.b)[:, None]
            np.take(tables.reshape(-1), places, out=out[top : top + step], mode="clip")

    def _table(self, smallest: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return (R, 2^b): the value of each code for (R,) thresholds; 0 for kept elements, which are stored apart."""
        highest = (1 << self.b) - 1
        tables = np.zeros((len(smallest), highest + 1), np.float32)
        tables[:, :highest] = np.arange(highest) * smallest.astype(np.float64)[:, None] / highest
        return tables

    def _marked(self, codes: ByteArray, rows: int, width: int, k: int) -> Positions:
        at = np.flatnonzero(codes == (1 << self.b) - 1)
        if len(at) != rows * k or (at.reshape(rows, k) // width != np.arange(rows)[:, None]).any():
            raise WireError(
                f"codec mask: {len(at)} elements are marked as kept, the header says {k} in each of {rows} rows"
            )
        return at
