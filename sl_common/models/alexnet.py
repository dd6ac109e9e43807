"""AlexNet (Krizhevsky et al., NeurIPS 2012) in its usual form for 32×32 images."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from sl_common.errors import ConfigError


def alexnet(input: Sequence[int], classes: int, dropout: float = 0.5) -> list[tuple[str, nn.Module]]:
    """Return blocks conv1 to conv5, fc1, fc2, out. SGLR cuts after conv1: (64, 8, 8) of a 32×32 image."""
    if len(input) != 3 or min(input[1:]) < 32:
        raise ConfigError(f"model 'alexnet' needs input (C, H ≥ 32, W ≥ 32), got {tuple(input)}")
    features = 256 * (input[1] // 16) * (input[2] // 16)
    return [
        ("conv1", nn.Sequential(nn.Conv2d(input[0], 64, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2))),
        ("conv2", nn.Sequential(nn.Conv2d(64, 192, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))),
        ("conv3", nn.Sequential(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU())),
        ("conv4", nn.Sequential(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU())),
        ("conv5", nn.Sequential(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))),
        ("fc1", nn.Sequential(nn.Flatten(), nn.Dropout(dropout), nn.Linear(features, 4096), nn.ReLU())),
        ("fc2", nn.Sequential(nn.Dropout(dropout), nn.Linear(4096, 4096), nn.ReLU())),
        ("out", nn.Linear(4096, classes)),
    ]
