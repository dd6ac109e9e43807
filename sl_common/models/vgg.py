"""VGG networks with BatchNorm (Simonyan & Zisserman, ICLR 2015) in their forms for 32×32 images.

`vgg11` and `vgg13` end in one linear layer. `vgg16` and `vgg19` end in the classifier of MS's authors (Zhou et al.,
ECAI 2024): two hidden layers of 4,096 units with dropout. For larger images each classifier takes means over the last
map, which is 1×1 for 32×32 images.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from sl_common.errors import ConfigError

# Output channels of each convolution; "M" halves the map after the one before it.
_PLANS: dict[str, tuple[int | str, ...]] = {
    "vgg11": (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"),
    "vgg13": (64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"),
    "vgg16": (64, 64, "M", 128, 128, "M", *(256,) * 3, "M", *(512,) * 3, "M", *(512,) * 3, "M"),
    "vgg19": (64, 64, "M", 128, 128, "M", *(256,) * 4, "M", *(512,) * 4, "M", *(512,) * 4, "M"),
}


def vgg11(input: Sequence[int], classes: int) -> list[tuple[str, nn.Module]]:
    """Return VGG-11: blocks conv1 to conv8, out; for images of at least 32×32."""
    return [*_features("vgg11", input), _pooled(nn.Linear(512, classes))]


def vgg13(input: Sequence[int], classes: int) -> list[tuple[str, nn.Module]]:
    """Return VGG-13: blocks conv1 to conv10, out; for images of at least 32×32."""
    return [*_features("vgg13", input), _pooled(nn.Linear(512, classes))]


def vgg16(input: Sequence[int], classes: int, dropout: float = 0.5) -> list[tuple[str, nn.Module]]:
    """Return VGG-16: blocks conv1 to conv13, fc1, fc2, out.

    MS's newer program cuts after conv1 (64, 32, 32), conv7 (256, 4, 4) and conv13 (512, 1, 1).
    """
    return [*_features("vgg16", input), *_classifier(classes, dropout)]


def vgg19(input: Sequence[int], classes: int, dropout: float = 0.5) -> list[tuple[str, nn.Module]]:
    """Return VGG-19: blocks conv1 to conv16, fc1, fc2, out.

    MS cuts 32×32 images after conv2 (64, 16, 16), conv8 (256, 4, 4) and conv15 (512, 2, 2).
    """
    return [*_features("vgg19", input), *_classifier(classes, dropout)]


def _classifier(classes: int, dropout: float) -> list[tuple[str, nn.Module]]:
    pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return [
        ("fc1", nn.Sequential(*pooled, *_hidden(512, dropout))),
        ("fc2", nn.Sequential(*_hidden(4096, dropout))),
        ("out", nn.Linear(4096, classes)),
    ]


def _hidden(inputs: int, dropout: float) -> list[nn.Module]:
    return [nn.Linear(inputs, 4096), nn.ReLU(), *([nn.Dropout(dropout)] if dropout else [])]


def _features(name: str, input: Sequence[int]) -> list[tuple[str, nn.Module]]:
    """Return the convolutional blocks: convolution, BatchNorm, ReLU, and the max-pool that may follow."""
    if len(input) != 3 or min(input[1:]) < 32:
        raise ConfigError(f"model {name!r} needs input (C, H ≥ 32, W ≥ 32), got {tuple(input)}")
    blocks: list[tuple[str, nn.Module]] = []
    inputs = input[0]
    for step in _PLANS[name]:
        if isinstance(step, int):
            layers = [nn.Conv2d(inputs, step, 3, padding=1), nn.BatchNorm2d(step), nn.ReLU()]
            blocks.append((f"conv{len(blocks) + 1}", nn.Sequential(*layers)))
            inputs = step
        else:
            label, block = blocks[-1]
            blocks[-1] = (label, nn.Sequential(*block.children(), nn.MaxPool2d(2)))
    return blocks


def _pooled(last: nn.Linear) -> tuple[str, nn.Module]:
    return "out", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), last)
