"""Auxiliary networks: what a learner puts on its own activations to have a loss of its own. Frozen choices that make modules.

A classifier gives (B, classes) logits; a decoder gives back the image. Each is initialised from a seed of its own.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from sl_common.batch import Batch
from sl_common.errors import ConfigError
from sl_common.seeds import Draw
from sl_common.segment import Segment
from sl_common.value import Value


class Classifier(Value):
    """Predicts the label from the activation; the loss is the mean cross-entropy.

    `form`: `linear` on all of the activation (CSE-FSL), `pooled` on its channels' means (FSL-SAGE's smallest), `mlp` with one hidden
    layer.
    """

    kind: Literal["classifier"] = "classifier"
    form: Literal["linear", "pooled", "mlp"] = "linear"
    hidden: PositiveInt = 64  # of the mlp
    predicts: ClassVar[bool] = True

    def make(self, cut: tuple[int, ...], input: tuple[int, ...], classes: int) -> nn.Module:  # noqa: ARG002
        """For activations (B, *cut)."""
        if self.form == "pooled":
            if len(cut) != 3:
                raise ConfigError(f"aux.form = 'pooled' needs activations (C, H, W), this cut has {cut}")
            return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(cut[0], classes))
        width = math.prod(cut)
        if self.form == "mlp":
            layers = [nn.Linear(width, self.hidden), nn.ReLU(), nn.Linear(self.hidden, classes)]
            return nn.Sequential(nn.Flatten(), *layers)
        return nn.Sequential(nn.Flatten(), nn.Linear(width, classes))

    def loss(self, aux: Segment, z: Tensor, batch: Batch, draw: Draw) -> Tensor:
        """Mean over the batch."""
        return F.cross_entropy(aux.forward(z, draw), batch.y.to(aux.device))


class _Decode(nn.Module):
    """Up to the image's size, two convolutions, a sigmoid (the InfoPro-style decoder of Wang et al. 2021)."""

    def __init__(self, channels: int, input: tuple[int, ...], hidden: int) -> None:
        super().__init__()
        self.size = input[1:]
        self.first = nn.Conv2d(channels, hidden, 3, padding=1)
        self.norm = nn.BatchNorm2d(hidden)
        self.second = nn.Conv2d(hidden, input[0], 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, *input) in [0, 1]."""
        up = F.interpolate(z, size=self.size, mode="bilinear", align_corners=False)
        return torch.sigmoid(self.second(F.relu(self.norm(self.first(up)))))


class Decoder(Value):
    """Gives the image back, as stored and scaled to [0, 1]: what the activation keeps of it (LocFedMix-SL, Oh et al. 2022, Eq. 8).

    The architecture is that of the same group's released code; a cut that is no map (C, H, W) gets two linear layers instead. Keeping
    the image recoverable also makes it easier to reconstruct for others.
    """

    kind: Literal["decoder"] = "decoder"
    hidden: PositiveInt = 12  # channels, or units of a cut that is no map
    loss_function: Literal["mse", "bce"] = "mse"
    predicts: ClassVar[bool] = False

    def make(self, cut: tuple[int, ...], input: tuple[int, ...], classes: int) -> nn.Module:  # noqa: ARG002
        """For activations (B, *cut) of images (B, *input)."""
        if len(cut) == 3 and len(input) == 3:
            return _Decode(cut[0], input, self.hidden)
        layers = [nn.Linear(math.prod(cut), self.hidden), nn.ReLU(), nn.Linear(self.hidden, math.prod(input))]
        return nn.Sequential(nn.Flatten(), *layers, nn.Sigmoid(), nn.Unflatten(1, input))

    def loss(self, aux: Segment, z: Tensor, batch: Batch, draw: Draw) -> Tensor:
        """Mean over all elements."""
        found, image = aux.forward(z, draw), batch.image.to(aux.device)
        return F.mse_loss(found, image) if self.loss_function == "mse" else F.binary_cross_entropy(found, image)


Auxiliary = Annotated[Classifier | Decoder, Field(discriminator="kind")]
