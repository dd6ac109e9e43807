"""A network of one's own whose first block looks numbers up, and sets of such numbers."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from sl_client.data import Data

WORDS, LENGTH, WIDTH, CLASSES = 50, 6, 8, 3


class Look(nn.Module):
    """(B, LENGTH) numbers of words -> (B, LENGTH, WIDTH)."""

    def __init__(self, *, cast: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, WIDTH)
        self.cast = cast

    def forward(self, x: Tensor) -> Tensor:
        return self.table(x.long() if self.cast else x)  # type: ignore[no-any-return]


class Mean(nn.Module):
    """(B, LENGTH, WIDTH) -> (B, WIDTH)."""

    def forward(self, z: Tensor) -> Tensor:
        return z.mean(1)


def network(input: tuple[int, ...], classes: int, *, cast: bool = True) -> list[tuple[str, nn.Module]]:  # noqa: ARG001
    return [("look", Look(cast=cast)), ("mean", Mean()), ("out", nn.Linear(WIDTH, classes))]


def _made(dtype: torch.dtype) -> Data:
    x = torch.randint(0, WORDS, (200, LENGTH), generator=torch.Generator().manual_seed(0))
    y = x[:, 0] % CLASSES
    return Data(train=(x.to(dtype), y), test=(x[:60].to(dtype), y[:60]), classes=CLASSES)


def floats(root: Path | None) -> Data:  # noqa: ARG001
    return _made(torch.float32)


def integers(root: Path | None) -> Data:  # noqa: ARG001
    return _made(torch.int64)


class Pairs(nn.Module):
    """Takes two samples at a time, as a network is tried out, and no more."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(2, LENGTH)


def pairs(input: tuple[int, ...], classes: int) -> list[tuple[str, nn.Module]]:  # noqa: ARG001
    return [("pairs", Pairs()), ("out", nn.Linear(LENGTH, classes))]


def in_place(input: tuple[int, ...], classes: int) -> list[tuple[str, nn.Module]]:  # noqa: ARG001
    return [("low", nn.Linear(LENGTH, WIDTH)), ("relu", nn.ReLU(inplace=True)), ("out", nn.Linear(WIDTH, classes))]
