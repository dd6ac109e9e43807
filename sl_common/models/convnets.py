"""The two small convolutional networks that CSE-FSL (arXiv:2302.05599) is measured on."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from sl_common.errors import ConfigError


def cnn_lrn(input: Sequence[int], classes: int) -> list[tuple[str, nn.Module]]:
    """For CIFAR: two of (5×5 convolution, local response normalisation, max-pool), then 384-192. 24×24 crops give 2,304 features.

    Blocks: conv1, conv2, fc1, fc2, out; the paper cuts after conv2.
    """
    if len(input) != 3 or min(input[1:]) < 4:
        raise ConfigError(f"model 'cnn_lrn' needs input (C, H ≥ 4, W ≥ 4), got {tuple(input)}")
    features = 64 * (input[1] // 4) * (input[2] // 4)
    return [
        (
            "conv1",
            nn.Sequential(nn.Conv2d(input[0], 64, 5, padding=2), nn.ReLU(), nn.LocalResponseNorm(4), nn.MaxPool2d(2)),
        ),
        ("conv2", nn.Sequential(nn.Conv2d(64, 64, 5, padding=2), nn.ReLU(), nn.LocalResponseNorm(4), nn.MaxPool2d(2))),
        ("fc1", nn.Sequential(nn.Flatten(), nn.Linear(features, 384), nn.ReLU())),
        ("fc2", nn.Sequential(nn.Linear(384, 192), nn.ReLU())),
        ("out", nn.Linear(192, classes)),
    ]


def cnn_emnist(input: Sequence[int], classes: int) -> list[tuple[str, nn.Module]]:
    """For F-EMNIST: 3×3 convolutions of 32 and 64 channels and a max-pool, then 128. 28×28 images give 9,216 features.

    Blocks: conv1, conv2, fc1, out; the paper cuts after conv2.
    """
    if len(input) != 3 or min(input[1:]) < 6:
        raise ConfigError(f"model 'cnn_emnist' needs input (C, H ≥ 6, W ≥ 6), got {tuple(input)}")
    features = 64 * ((input[1] - 4) // 2) * ((input[2] - 4) // 2)
    return [
        ("conv1", nn.Sequential(nn.Conv2d(input[0], 32, 3), nn.ReLU())),
        ("conv2", nn.Sequential(nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2))),
        ("fc1", nn.Sequential(nn.Flatten(), nn.Linear(features, 128), nn.ReLU())),
        ("out", nn.Linear(128, classes)),
    ]
