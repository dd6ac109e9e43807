"""The two small convolutional networks of CSE-FSL's experiments (arXiv:2302.05599), layer by layer as in its program.

Weights begin as torch's layers draw them; the authors draw every weight and bias of these networks from N(0, 0.05²).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from sl_common.errors import ConfigError


def cnn_lrn(input: Sequence[int], classes: int) -> list[tuple[str, nn.Module]]:
    """Return a network for CIFAR: (convolution, pool, normalise), (convolution, normalise, pool), then 384-192.

    24×24 crops give 2,304 features. Blocks: conv1, conv2, fc1, fc2, out; the paper cuts after conv2. The network is
    that of TensorFlow's CIFAR-10 tutorial, in the authors' program: 5×5 convolutions, max-pools of 3×3 with stride 2
    and padding 1 (a side of n becomes ⌈n / 2⌉), local response normalisation over 4 channels with α = 0.001 / 9,
    which torch divides by the 4. The tutorial itself normalises over 9 channels with an α of that size for each, 9
    times as strong, and pads its pools on the far side only.
    """
    if len(input) != 3 or min(input[1:]) < 4:
        raise ConfigError(f"model 'cnn_lrn' needs input (C, H ≥ 4, W ≥ 4), got {tuple(input)}")
    features = 64 * ((input[1] + 3) // 4) * ((input[2] + 3) // 4)
    return [
        ("conv1", nn.Sequential(nn.Conv2d(input[0], 64, 5, padding=2), nn.ReLU(), _pool(), _normalise())),
        ("conv2", nn.Sequential(nn.Conv2d(64, 64, 5, padding=2), nn.ReLU(), _normalise(), _pool())),
        ("fc1", nn.Sequential(nn.Flatten(), nn.Linear(features, 384), nn.ReLU())),
        ("fc2", nn.Sequential(nn.Linear(384, 192), nn.ReLU())),
        ("out", nn.Linear(192, classes)),
    ]


def _pool() -> nn.Module:
    return nn.MaxPool2d(3, stride=2, padding=1)


def _normalise() -> nn.Module:
    return nn.LocalResponseNorm(4, alpha=0.001 / 9, beta=0.75, k=1.0)


def cnn_emnist(
    input: Sequence[int], classes: int, dropout: tuple[float, float] = (0.25, 0.5)
) -> list[tuple[str, nn.Module]]:
    """Return a network for F-EMNIST: 3×3 convolutions of 32 and 64 channels, a max-pool, dropout, then 128.

    28×28 images give 9,216 features. Blocks: conv1, conv2, fc1, out; the paper cuts after conv2. The convolutions have
    no activation function, as in the authors' program: the only ReLU is fc1's. `dropout` has the rates for conv2's map,
    before the cut, and for fc1's units; a rate of 0 makes no layer.
    """
    if len(input) != 3 or min(input[1:]) < 6:
        raise ConfigError(f"model 'cnn_emnist' needs input (C, H ≥ 6, W ≥ 6), got {tuple(input)}")
    features = 64 * ((input[1] - 4) // 2) * ((input[2] - 4) // 2)
    of_map, of_units = ([nn.Dropout(rate)] if rate else [] for rate in dropout)
    return [
        ("conv1", nn.Conv2d(input[0], 32, 3)),
        ("conv2", nn.Sequential(nn.Conv2d(32, 64, 3), nn.MaxPool2d(2), *of_map)),
        ("fc1", nn.Sequential(nn.Flatten(), nn.Linear(features, 128), nn.ReLU(), *of_units)),
        ("out", nn.Linear(128, classes)),
    ]
