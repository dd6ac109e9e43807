"""One mini-batch as a learner sees it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """`step` counts from 0 within the wave and names the batch on the wire."""

    step: int
    x: Tensor  # (B, *input) float32, normalised
    y: Tensor  # (B,) int64
