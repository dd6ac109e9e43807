"""A multi-layer perceptron, one block a layer."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn


def mlp(
    input: Sequence[int],
    classes: int,
    hidden: Sequence[int] = (256,),
    batch_norm: bool = False,
    dropout: float = 0.0,
) -> list[tuple[str, nn.Module]]:
    """Return the blocks of a network from x (B, *input) to logits (B, classes).

    Blocks: hidden1 … hiddenN, out; each hidden one is Linear [BatchNorm] ReLU [Dropout].
    """
    blocks: list[tuple[str, nn.Module]] = []
    width = math.prod(input)
    for number, units in enumerate(hidden, start=1):
        layers: list[nn.Module] = [nn.Flatten()] if number == 1 else []
        layers.append(nn.Linear(width, units))
        layers += [nn.BatchNorm1d(units)] if batch_norm else []
        layers.append(nn.ReLU())
        layers += [nn.Dropout(dropout)] if dropout else []
        blocks.append((f"hidden{number}", nn.Sequential(*layers)))
        width = units
    blocks.append(("out", nn.Linear(width, classes)))
    return blocks
