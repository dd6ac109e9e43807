"""Top-k sparsification (SP): the k largest elements in full, zero elsewhere.

Bytes: w·k + min(⌈d/8⌉, ⌈k·⌈log2 d⌉/8⌉) with w = 4 or 2, summed over the rows; k = d − ⌈r·d⌉, at least 1. Parameters:
k of each row (uint64). Defaults as RandTop-k compares with (each sample, by magnitude); Zhou et al. (MS) take the
whole batch by signed value.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from sl_common.codec.numbers import extremes, flat32
from sl_common.codec.packed import Coding, Layout, Packed
from sl_common.codec.select import Scope, kept_of, largest, rows_of
from sl_common.codec.sparse import Precision, check_sparse, decode_sparse, encode_sparse, sparse_nbytes
from sl_common.value import Value


class TopK(Value):
    """Top-k with sparsity ratio `r`, the fraction of the elements that is dropped."""

    kind: Literal["topk"] = Field("topk", description="Top-k: the k largest elements in full, zero elsewhere.")
    r: float = Field(0.9, ge=0, lt=1, description="Sparsity ratio: fraction of the elements that is dropped.")
    scope: Scope = Field("sample", description="Choose the k largest within the whole batch, or within each sample.")
    key: Literal["abs", "signed"] = Field("abs", description="Compare elements by magnitude, or by signed value.")
    values: Precision = Field("float32", description="Precision of the kept values.")
    uses_like: ClassVar[bool] = False

    def sizes(self, dtype: torch.dtype, shape: tuple[int, ...]) -> tuple[int, int]:  # noqa: ARG002  (the interface)
        """Return the bytes of values and positions."""
        rows, width = rows_of(shape, self.scope)
        nbytes = sparse_nbytes(rows, width, kept_of(width, self.r), self.values)
        return nbytes, nbytes

    def encode(self, x: Tensor, coding: Coding) -> Packed:  # noqa: ARG002  (the interface)
        """Encode values and positions. Raise Diverged on NaN or Inf."""
        extremes(x, self.kind)
        rows = flat32(x).reshape(rows_of(tuple(x.shape), self.scope))
        k = kept_of(rows.shape[1], self.r)
        at = largest(np.abs(rows) if self.key == "abs" else rows, k)
        return encode_sparse(self.kind, x, rows, at, k, self.values)

    def check(self, layout: Layout) -> None:
        """Check that k and the byte count are those of this shape."""
        rows, width = rows_of(layout.shape, self.scope)
        check_sparse(self.kind, layout, rows, width, kept_of(width, self.r), self.values)

    def decode(self, packed: Packed, coding: Coding) -> Tensor:  # noqa: ARG002  (the interface)
        """Return the decoded tensor. Raise WireError on positions out of order or range and on NaN or Inf."""
        return decode_sparse(self.kind, packed, *rows_of(packed.layout.shape, self.scope), self.values)
