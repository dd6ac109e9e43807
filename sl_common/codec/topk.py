"""Top-k sparsification (SP): the k largest elements as they are, zero elsewhere.

Bytes: w·k + min(⌈d/8⌉, ⌈k·⌈log2 d⌉/8⌉) with w = 4 or 2, summed over the rows; k = d − ⌈r·d⌉, at least 1. Parameters: k of each row
(uint64). Defaults as RandTop-k compares with (each sample, by magnitude); Zhou et al. (MS) take the whole batch by signed value.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

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
    """Sparsity ratio `r`: the share of elements that is dropped."""

    kind: Literal["topk"] = "topk"
    r: Annotated[float, Field(ge=0, lt=1)] = 0.9
    scope: Scope = "sample"
    key: Literal["abs", "signed"] = "abs"
    values: Precision = "float32"
    uses_like: ClassVar[bool] = False

    def sizes(self, dtype: torch.dtype, shape: tuple[int, ...]) -> tuple[int, int]:  # noqa: ARG002  (the interface)
        """Values and positions."""
        rows, width = rows_of(shape, self.scope)
        nbytes = sparse_nbytes(rows, width, kept_of(width, self.r), self.values)
        return nbytes, nbytes

    def encode(self, x: Tensor, coding: Coding) -> Packed:  # noqa: ARG002  (the interface)
        """Values and positions. Raises Diverged on NaN or Inf."""
        extremes(x, self.kind)
        rows = flat32(x).reshape(rows_of(tuple(x.shape), self.scope))
        k = kept_of(rows.shape[1], self.r)
        at = largest(np.abs(rows) if self.key == "abs" else rows, k)
        return encode_sparse(self.kind, x, rows, at, k, self.values)

    def check(self, layout: Layout) -> None:
        """k and the byte count must be those of this shape."""
        rows, width = rows_of(layout.shape, self.scope)
        check_sparse(self.kind, layout, rows, width, kept_of(width, self.r), self.values)

    def decode(self, packed: Packed, coding: Coding) -> Tensor:  # noqa: ARG002  (the interface)
        """Raises WireError on positions out of order or range and on values that are not finite."""
        return decode_sparse(self.kind, packed, *rows_of(packed.layout.shape, self.scope), self.values)
