"""One mini-batch as a learner sees it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """One mini-batch; `step` counts from 0 within the wave and names the batch on the wire."""

    step: int
    x: Tensor  # (B, *input) float32, normalised
    y: Tensor  # (B,) int64
    stored: Tensor | None = None  # (B, *input) as the data set has it: uint8, or float32 taken to be in [0, 1]

    @property
    def image(self) -> Tensor:
        """Images (B, *input) float32 in [0, 1]: x without its normalisation."""
        assert self.stored is not None, "this batch came without its image"
        return self.stored.float().div_(255) if self.stored.dtype == torch.uint8 else self.stored
