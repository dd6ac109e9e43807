"""Residual networks of basic blocks (He et al., CVPR 2016); a cut is possible after each of these blocks.

They begin as torchvision's and FSL-SAGE's do: convolutions from He et al.'s normal distribution by their outgoing
connections (ICCV 2015), BatchNorm with scale 1 and shift 0, the linear layer as torch draws it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from sl_common.errors import ConfigError

Stem = Literal["imagenet", "cifar"]


class HeConv2d(nn.Conv2d):
    """A convolution without bias, before a BatchNorm and a ReLU: weights from N(0, 2 / (outputs · kernel size²))."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__(inputs, outputs, kernel_size, stride, padding, bias=False)

    def reset_parameters(self) -> None:
        """Draw the weights.

        Torch calls this when it makes the layer, and `models.fill` when a hollow one gets memory.
        """
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with BatchNorm beside the identity, or beside a 1×1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = HeConv2d(inputs, outputs, 3, stride, 1)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = HeConv2d(outputs, outputs, 3, 1, 1)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.down: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.down = nn.Sequential(HeConv2d(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, outputs, H / stride, W / stride) of (B, inputs, H, W)."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.down(x))


def resnet18(input: Sequence[int], classes: int, stem: Stem = "imagenet") -> list[tuple[str, nn.Module]]:
    """Return ResNet-18: blocks stem, layer1_0, layer1_1, …, layer4_1, out.

    FSL-SAGE cuts after layer2_1: 32×32 images become (128, 4, 4). The ImageNet stem is a 7×7 convolution of stride 2
    and a max-pool, CIFAR's a 3×3 convolution.
    """
    return _resnet("resnet18", input, classes, stem, (2, 2, 2, 2), (64, 128, 256, 512))


def resnet34(input: Sequence[int], classes: int, stem: Stem = "imagenet") -> list[tuple[str, nn.Module]]:
    """Return ResNet-34.

    Blocks: stem, layer1_0 to layer1_2, layer2_0 to layer2_3, layer3_0 to layer3_5, layer4_0 to layer4_2, out.
    """
    return _resnet("resnet34", input, classes, stem, (3, 4, 6, 3), (64, 128, 256, 512))


def resnet16(input: Sequence[int], classes: int) -> list[tuple[str, nn.Module]]:
    """Return a thin residual network of 16 layers (Pal et al. 2021).

    The cut after layer2_1 leaves 9 layers with the client, 7 with the server. Blocks: stem (16), layer1_0, layer1_1
    (16), layer2_0, layer2_1 (32), layer3_0 to layer3_2 (64), out.
    """
    return _resnet("resnet16", input, classes, "cifar", (2, 2, 3), (16, 32, 64))


def _resnet(
    name: str, input: Sequence[int], classes: int, stem: Stem, depths: Sequence[int], widths: Sequence[int]
) -> list[tuple[str, nn.Module]]:
    if len(input) != 3:
        raise ConfigError(f"model {name!r} needs input (C, H, W), got {tuple(input)}")
    if stem not in ("imagenet", "cifar"):
        raise ConfigError(f"model {name!r}: stem = {stem!r}, known are imagenet and cifar")
    blocks: list[tuple[str, nn.Module]] = [("stem", _stem(input[0], widths[0], stem))]
    inputs = widths[0]
    for layer, (depth, outputs) in enumerate(zip(depths, widths, strict=True), start=1):
        for place in range(depth):
            stride = 2 if layer > 1 and place == 0 else 1
            blocks.append((f"layer{layer}_{place}", BasicBlock(inputs, outputs, stride)))
            inputs = outputs
    tail = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))
    return [*blocks, ("out", tail)]


def _stem(channels: int, width: int, stem: Stem) -> nn.Sequential:
    if stem == "cifar":
        return nn.Sequential(HeConv2d(channels, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU())
    first = HeConv2d(channels, width, 7, 2, 3)
    return nn.Sequential(first, nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
