"""A small convolutional network for images from 8×8 up."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from sl_common.errors import ConfigError


def cnn(
    input: Sequence[int],
    classes: int,
    channels: tuple[int, int] = (32, 64),
    hidden: int = 128,
    batch_norm: bool = False,
    dropout: float = 0.0,
) -> list[tuple[str, nn.Module]]:
    """Return the blocks of a network from x (B, C, H, W) to logits (B, classes).

    Blocks: conv1, conv2 (each Conv 3×3 [BatchNorm] ReLU MaxPool 2), hidden (Linear ReLU [Dropout]), out (Linear). Cut
    after conv1 a 28×28 image becomes (32, 14, 14). Raise ConfigError for an input that is not (C, H ≥ 4, W ≥ 4).
    """
    if len(input) != 3 or min(input[1:]) < 4:
        raise ConfigError(f"model 'cnn' needs input (C, H, W) with H and W at least 4, got {tuple(input)}")
    first, second = channels
    features = second * (input[1] // 4) * (input[2] // 4)
    tail = [nn.Dropout(dropout)] if dropout else []
    return [
        ("conv1", _stage(input[0], first, batch_norm)),
        ("conv2", _stage(first, second, batch_norm)),
        ("hidden", nn.Sequential(nn.Flatten(), nn.Linear(features, hidden), nn.ReLU(), *tail)),
        ("out", nn.Linear(hidden, classes)),
    ]


def _stage(inputs: int, outputs: int, batch_norm: bool) -> nn.Sequential:
    norm = [nn.BatchNorm2d(outputs)] if batch_norm else []
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), *norm, nn.ReLU(), nn.MaxPool2d(2))
