"""A network that computes next to nothing and sends much: what is left of a step is the link (`benchmarks.wide:wide`)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

COPIES, PIXELS = 64, 1024  # of a sample at the cut: 262 kB


class Spread(nn.Module):
    """The image, scaled by one trained number, many times over."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) of at most PIXELS numbers -> (B, COPIES, PIXELS)."""
        flat = x.flatten(1) * self.scale
        flat = nn.functional.pad(flat, (0, PIXELS - flat.shape[1]))
        return flat.unsqueeze(1).expand(-1, COPIES, -1).contiguous()


class Gather(nn.Module):
    """Logits of what the copies have in common."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(PIXELS, classes)

    def forward(self, z: Tensor) -> Tensor:
        """(B, COPIES, PIXELS) -> (B, classes)."""
        logits: Tensor = self.linear(z.mean(1))
        return logits


def wide(input: Sequence[int], classes: int) -> list[tuple[str, nn.Module]]:
    """Blocks: spread, out."""
    assert math.prod(input) <= PIXELS
    return [("spread", Spread()), ("out", Gather(classes))]
