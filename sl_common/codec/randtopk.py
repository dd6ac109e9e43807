"""RandTop-k: in training each sample keeps k drawn elements, so that others than the largest learn too.

Zheng, Chen, Lyu & Yao, "Reducing Communication for Split Learning by Randomized Top-k Sparsification", IJCAI 2023. In
evaluation it is plain Top-k. k positions are drawn without replacement with weights (1 − α)/k on each of the k
largest magnitudes and α/(D − k) on each other one (here by a race of exponential clocks: the k that ring first). α =
0 is Top-k; α = 1 draws among the others alone, as far as there are k. Bytes as Top-k.

Defaults as in that paper. The program of "Mask-Encoded Sparsification" (Zhou et al., ECAI 2024) compares with another
RandTop-k: of the whole flattened tensor (`scope = "batch"`), by signed value (`key = "signed"`), drawn in evaluation
too (`evaluate = "random"`).
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from sl_common.codec.numbers import extremes, flat32
from sl_common.codec.packed import Coding, Layout, Packed
from sl_common.codec.select import Positions, Scope, kept_of, largest, rows_of
from sl_common.codec.sparse import Precision, check_sparse, decode_sparse, encode_sparse, sparse_nbytes
from sl_common.seeds import Draw, numpy_generator
from sl_common.value import Value


class RandTopK(Value):
    """Randomised Top-k with sparsity ratio `r` and randomness `alpha`."""

    kind: Literal["randtopk"] = Field(
        "randtopk",
        description="RandTop-k: k elements of each sample, drawn at random with a preference for the largest.",
    )
    r: float = Field(0.9, ge=0, lt=1, description="Sparsity ratio: fraction of the elements that is dropped.")
    alpha: float = Field(
        0.1, ge=0, le=1, description="Randomness: 0 is Top-k, 1 draws among the smaller elements alone."
    )
    scope: Scope = Field("sample", description="Choose the k largest within the whole batch, or within each sample.")
    key: Literal["abs", "signed"] = Field("abs", description="Compare elements by magnitude, or by signed value.")
    evaluate: Literal["topk", "random"] = Field(
        "topk", description="In evaluation: plain Top-k, or a random draw as in training."
    )
    values: Precision = Field("float32", description="Precision of the kept values.")
    uses_like: ClassVar[bool] = False

    def sizes(self, dtype: torch.dtype, shape: tuple[int, ...]) -> tuple[int, int]:  # noqa: ARG002  (the interface)
        """Return the bytes of values and positions."""
        rows, width = rows_of(shape, self.scope)
        nbytes = sparse_nbytes(rows, width, kept_of(width, self.r), self.values)
        return nbytes, nbytes

    def encode(self, x: Tensor, coding: Coding) -> Packed:
        """Encode values and positions. Raise Diverged on NaN or Inf."""
        extremes(x, self.kind)
        rows = flat32(x).reshape(rows_of(tuple(x.shape), self.scope))
        k = kept_of(rows.shape[1], self.r)
        at = largest(np.abs(rows) if self.key == "abs" else rows, k)
        if (coding.training or self.evaluate == "random") and self.alpha > 0 and k < rows.shape[1]:
            at = self._draw(at, rows.shape, k, coding.draw)
        return encode_sparse(self.kind, x, rows, at, k, self.values)

    def _draw(self, top: Positions, shape: tuple[int, int], k: int, draw: Draw) -> Positions:
        rows, width = shape
        clocks: NDArray[np.float64] = numpy_generator(*draw).standard_exponential(rows * width)
        early = clocks[top]
        with np.errstate(over="ignore"):  # with a tiny alpha: the clock never rings
            clocks *= (1 - self.alpha) / k * ((width - k) / self.alpha) if self.alpha < 1 else 1.0
        clocks[top] = early if self.alpha < 1 else np.inf
        return largest(-clocks.reshape(shape), k)

    def check(self, layout: Layout) -> None:
        """Check that k and the byte count are those of this shape."""
        rows, width = rows_of(layout.shape, self.scope)
        check_sparse(self.kind, layout, rows, width, kept_of(width, self.r), self.values)

    def decode(self, packed: Packed, coding: Coding) -> Tensor:  # noqa: ARG002  (the interface)
        """Return the decoded tensor. Raise WireError on positions out of order or range and on NaN or Inf."""
        return decode_sparse(self.kind, packed, *rows_of(packed.layout.shape, self.scope), self.values)
