"""Auxiliary networks, by which a learner has a local loss on its own activations.

A classifier gives (B, classes) logits; a decoder gives back the image. Each is a frozen value that makes a module,
which is initialised from a seed of its own.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from sl_common.batch import Batch
from sl_common.errors import ConfigError
from sl_common.seeds import Draw
from sl_common.training.modules import buffers_untouched
from sl_common.training.segment import Segment
from sl_common.value import Value

MakeHead = Callable[[], Sequence[tuple[str, nn.Module]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """Requirements of an auxiliary network: activations (B, *cut) of images (B, *input), and the head it stands for."""

    cut: tuple[int, ...]
    input: tuple[int, ...]
    classes: int
    head: MakeHead  # makes the head's blocks, newly initialised


class Classifier(Value):
    """A classifier: predicts the label from the activation; the loss is the mean cross-entropy.

    `form`: `linear` on the whole activation (CSE-FSL), `pooled` on its channels' means (FSL-SAGE's smallest), `mlp`
    with one hidden layer, or `head`: the first `blocks` of the head's blocks, with weights of its own, and a linear
    layer on its channels' means (FSL-SAGE's half and default with 1 and 2 blocks of ResNet-18), or all blocks (full).
    """

    kind: Literal["classifier"] = Field("classifier", description="Predicts the label from the activation.")
    form: Literal["linear", "pooled", "mlp", "head"] = Field(
        "linear",
        description="Linear layer on the whole activation, or on its channels' means; one hidden layer; or the head's "
        "first blocks.",
    )
    hidden: PositiveInt = Field(64, description="Hidden units of form mlp.")
    blocks: PositiveInt | None = Field(
        None, description="Number of the head's first blocks that form head copies; by default all."
    )
    predicts: ClassVar[bool] = True

    def make(self, fit: Fit) -> nn.Module:
        """Return the module for activations (B, *cut). Raise ConfigError if the form does not suit them."""
        if self.form == "pooled":
            if len(fit.cut) != 3:
                raise ConfigError(f"aux.form = 'pooled' needs activations (C, H, W), this cut has {fit.cut}")
            return _pooled(fit.cut, fit.classes)
        if self.form == "head":
            return self._head(fit)
        width, classes = math.prod(fit.cut), fit.classes
        if self.form == "mlp":
            layers = [nn.Linear(width, self.hidden), nn.ReLU(), nn.Linear(self.hidden, classes)]
            return nn.Sequential(nn.Flatten(), *layers)
        return nn.Sequential(nn.Flatten(), nn.Linear(width, classes))

    def nbytes(self, fit: Fit) -> int:
        """Return the bytes of its weights without making them; 0 for form `head`, which makes the whole model again."""
        return 0 if self.form == "head" else _weights_of(lambda: self.make(fit))

    def _head(self, fit: Fit) -> nn.Module:
        """Return copies of the head's blocks, as many as asked for.

        If some are left out, means over the map (if it is one) and a linear layer follow.
        """
        blocks = list(fit.head())
        if self.blocks is None or self.blocks >= len(blocks):
            return nn.Sequential(OrderedDict(blocks))
        kept = nn.Sequential(OrderedDict(blocks[: self.blocks]))
        with torch.no_grad(), buffers_untouched(kept):
            features = tuple(kept(torch.zeros(2, *fit.cut)).shape[1:])
        return nn.Sequential(kept, _pooled(features, fit.classes))

    def loss(self, aux: Segment, z: Tensor, batch: Batch, draw: Draw, *, keep_buffers: bool = False) -> Tensor:
        """Return the mean over the batch."""
        return F.cross_entropy(aux.forward(z, draw, keep_buffers=keep_buffers), batch.y.to(aux.device))


def _weights_of(make: Callable[[], nn.Module]) -> int:
    with torch.device("meta"):
        return sum(t.numel() * t.element_size() for t in make().state_dict().values())


def _pooled(features: tuple[int, ...], classes: int) -> nn.Module:
    """Return logits from means over a map (C, H, W), or from all of any other activation."""
    if len(features) == 3:
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features[0], classes))
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(features), classes))


class _Decode(nn.Module):
    """Enlarge to the image's size, two convolutions, a sigmoid (the InfoPro-style decoder of Wang et al. 2021)."""

    def __init__(self, channels: int, input: tuple[int, ...], hidden: int) -> None:
        super().__init__()
        self.size = input[1:]
        self.first = nn.Conv2d(channels, hidden, 3, padding=1)
        self.norm = nn.BatchNorm2d(hidden)
        self.second = nn.Conv2d(hidden, input[0], 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """Return images (B, *input) in [0, 1] of activations (B, C, h, w)."""
        up = F.interpolate(z, size=self.size, mode="bilinear", align_corners=False)
        return torch.sigmoid(self.second(F.relu(self.norm(self.first(up)))))


class _DecodeUpwards(nn.Module):
    """Two transposed convolutions, of which the second does most of the enlargement, and a sigmoid.

    The wide map between them stays small.
    """

    def __init__(self, cut: tuple[int, ...], input: tuple[int, ...], channels: int) -> None:
        super().__init__()
        self.size = tuple(input[1:])
        steps = [_two_strides(-(-side // own)) for side, own in zip(input[1:], cut[1:], strict=True)]
        first, second = zip(*steps, strict=True)
        self.first = _transposed(cut[0], channels, first)
        self.second = _transposed(channels, input[0], second)

    def forward(self, z: Tensor) -> Tensor:
        """Return images (B, *input) in [0, 1] of activations (B, C, h, w).

        They are resized if the image's sides are no multiples of the cut's.
        """
        image = self.second(F.relu(self.first(z)))
        if image.shape[2:] != self.size:
            image = F.interpolate(image, size=self.size, mode="bilinear", align_corners=False)
        return torch.sigmoid(image)


def _two_strides(factor: int) -> tuple[int, int]:
    """Return two strides whose product is at least the factor, the smaller one first."""
    first = math.isqrt(factor)
    return first, -(-factor // first)


def _transposed(inputs: int, outputs: int, strides: tuple[int, ...]) -> nn.ConvTranspose2d:
    """Return a convolution that multiplies the sides by the strides, exactly."""
    kernel = tuple(stride + 2 for stride in strides)
    return nn.ConvTranspose2d(inputs, outputs, kernel, stride=strides, padding=1)  # type: ignore[arg-type]


class Decoder(Value):
    """A decoder: gives back the image, as stored and scaled to [0, 1] (LocFedMix-SL, Oh et al. 2022, Eq. 8).

    `form`: `upsample` is the architecture of the same group's released code, except that its bilinear `align_corners`
    is True there and False here; the enlarged activation, with as many channels as the cut has, takes memory on the
    client. `transposed`, two transposed convolutions with `channels` between them (c → 32 → 3), enlarges no
    activation and suits small devices better. A cut that is no map (C, H, W) gets two linear layers instead.
    Activations from which the image can be recovered also make it easier for others to reconstruct it.
    """

    kind: Literal["decoder"] = Field("decoder", description="Reconstructs the image from the activation.")
    form: Literal["upsample", "transposed"] = Field(
        "upsample", description="Enlarge the activation and convolve it, or use two transposed convolutions."
    )
    hidden: PositiveInt = Field(
        12, description="Channels of form upsample, or hidden units if the activation is no map (C, H, W)."
    )
    channels: PositiveInt = Field(32, description="Channels between the two convolutions of form transposed.")
    loss_function: Literal["mse", "bce"] = Field("mse", description="Squared error, or binary cross-entropy.")
    predicts: ClassVar[bool] = False

    def make(self, fit: Fit) -> nn.Module:
        """Return the module for activations (B, *cut) of images (B, *input)."""
        cut, input = fit.cut, fit.input
        if len(cut) == 3 and len(input) == 3:
            upwards = self.form == "transposed"
            return _DecodeUpwards(cut, input, self.channels) if upwards else _Decode(cut[0], input, self.hidden)
        layers = [nn.Linear(math.prod(cut), self.hidden), nn.ReLU(), nn.Linear(self.hidden, math.prod(input))]
        return nn.Sequential(nn.Flatten(), *layers, nn.Sigmoid(), nn.Unflatten(1, input))

    def nbytes(self, fit: Fit) -> int:
        """Return the bytes of its weights, without making them."""
        return _weights_of(lambda: self.make(fit))

    def loss(self, aux: Segment, z: Tensor, batch: Batch, draw: Draw, *, keep_buffers: bool = False) -> Tensor:
        """Return the mean over all elements."""
        found, image = aux.forward(z, draw, keep_buffers=keep_buffers), batch.image.to(aux.device)
        return F.mse_loss(found, image) if self.loss_function == "mse" else F.binary_cross_entropy(found, image)


Auxiliary = Annotated[Classifier | Decoder, Field(discriminator="kind")]
