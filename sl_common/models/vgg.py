"""VGG networks with BatchNorm (Simonyan & Zisserman, ICLR 2015) in their form for 32×32 images: one linear layer at the end."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from sl_common.errors import ConfigError

# Output channels of each convolution; "M" halves the map after the one before it.
_PLANS: dict[str, tuple[int | str, ...]] = {
    "vgg11": (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"),
    "vgg13": (64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"),
    "vgg19": (64, 64, "M", 128, 128, "M", *(256,) * 4, "M", *(512,) * 4, "M", *(512,) * 4, "M"),
}


def vgg11(input: Sequence[int], classes: int) -> list[tuple[str, nn.Module]]:
    """Blocks: conv1 to conv8, out; images from 32×32 up."""
    return _vgg("vgg11", input, classes)


def vgg13(input: Sequence[int], classes: int) -> list[tuple[str, nn.Module]]:
    """Blocks: conv1 to conv10, out; images from 32×32 up."""
    return _vgg("vgg13", input, classes)


def vgg19(input: Sequence[int], classes: int) -> list[tuple[str, nn.Module]]:
    """Blocks: conv1 to conv16, out. Cut after conv2 a 32×32 image becomes (64, 16, 16), after conv8 (256, 4, 4)."""
    return _vgg("vgg19", input, classes)


def _vgg(name: str, input: Sequence[int], classes: int) -> list[tuple[str, nn.Module]]:
    """Each block is convolution, BatchNorm, ReLU, and the max-pool that follows it."""
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
    tail = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))
    return [*blocks, ("out", tail)]
