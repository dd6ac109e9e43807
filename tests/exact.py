"""A network and data whose training is exact: on every machine, in any order of summing, its numbers are the same to the last bit.

All of them are multiples of a power of two with few digits, so that float32 holds every product and sum. The one place where training
is not so is the softmax; there the logits are made loud, and stand so far apart that its exponentials are exactly 0 and 1.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sl_client.data import Data

LOUD = 2.0**14
APART = 104.0  # exp(-104) is 0 in float32, with or without subnormal numbers
INPUT, WIDTH, CLASSES, SAMPLES, TESTS = 4, 6, 4, 16, 8


class Linear(nn.Linear):
    """Of halves; `backwards` sums everything in the opposite order."""

    def __init__(self, inputs: int, outputs: int, *, backwards: bool) -> None:
        super().__init__(inputs, outputs)
        self.backwards = backwards
        with torch.no_grad():
            self.weight.copy_(spread(inputs * outputs).view(outputs, inputs))
            self.bias.copy_(spread(outputs).flip(0))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, inputs) -> (B, outputs)."""
        if self.backwards:
            return F.linear(x.flip(0, 1), self.weight.flip(1), self.bias).flip(0)
        return F.linear(x, self.weight, self.bias)


class Loud(nn.Module):
    """The logits times a large number. Raises ArithmeticError where the largest is not alone: the softmax would have to round."""

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C) -> (B, C)."""
        logits = x * LOUD
        first, second = logits.detach().topk(2).values.unbind(1)
        if float((first - second).min()) < APART:
            raise ArithmeticError(f"two largest logits are nearer than {APART:g}: {logits}")
        return logits


def net(input: tuple[int, ...], classes: int, backwards: bool = False) -> list[tuple[str, nn.Module]]:
    """Two linear layers."""
    first = Linear(input[0], WIDTH, backwards=backwards)
    second = Linear(WIDTH, classes, backwards=backwards)
    return [("below", nn.Sequential(first, nn.ReLU())), ("above", second), ("loud", Loud())]


def spread(count: int) -> Tensor:
    """So many different-looking halves, from -1 to 1."""
    return torch.tensor([(7 * i + i * i // 3) % 5 - 2 for i in range(count)]) / 2


def data(_root: Path | None) -> Data:
    """Small whole numbers."""

    def samples(count: int, first: int) -> tuple[Tensor, Tensor]:
        x = [
            [((i * 37 + j * 11 + 5) * (i * 9 + j * 4 + 3 + first) // 8) % 4 for j in range(INPUT)] for i in range(count)
        ]
        return torch.tensor(x).float(), torch.tensor([(i * i + i // 3 + first) % CLASSES for i in range(count)])

    return Data(train=samples(SAMPLES, 0), test=samples(TESTS, 1), classes=CLASSES)
