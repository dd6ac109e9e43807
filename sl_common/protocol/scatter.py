"""Scatters choose the gradient that each client gets.

`scatter(gradients, at)` may replace a client's own gradient by another one of the same shape.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from sl_common.errors import ConfigError
from sl_common.protocol.at import At
from sl_common.seeds import numpy_generator
from sl_common.value import Value


class Own(Value):
    """Every client gets the gradient of its own samples."""

    kind: Literal["own"] = Field("own", description="Every client gets the gradient of its own samples.")
    equal_batches: ClassVar[bool] = False

    def scatter(
        self,
        gradients: Mapping[int, Tensor],
        at: At,  # noqa: ARG002
        divisors: Mapping[int, float] | None = None,  # noqa: ARG002
    ) -> Mapping[int, Tensor]:
        """Return the gradient that each client receives in place of its own dz (B, *cut)."""
        return gradients


class Averaged(Value):
    """SplitAvg: some clients, drawn anew for each step, get the mean of their gradients.

    Source: Pal et al. 2021, arXiv:2112.05929. ⌊fraction·C⌋ clients of the cohort share; one alone changes nothing.
    The mean (Eq. 15 prints a sum; text, name and the authors' code average) is by position in the batch, which mixes
    unrelated samples and needs batches of one size: clients then drop their last, smaller batch. With `unequal =
    "mean"` it is instead the mean over each batch's samples, then over the sharing clients, for every sample of each.

    The average is over gradients of a sample's own loss; each client then gets it in the scale of its own gradients.
    With `head.cut_grad_scale = "own_mean"`, where each holds 1/|Bᵢ| already, that is the mean over the sharing clients
    k of Σⱼ g_kj, over |Bᵢ|; with `global_mean` the mean over clients of the mean over samples. With
    `head.weights = "data"` and `global_mean` a client's gradients weigh as much as its data, before and after; so the
    sharing clients get the same direction in scales of their own. So clients that are alike get their own gradients
    back, whatever the sizes of their batches and data.

    `reduction = "sum"` is GradMix as a re-implementation of Mix2SFL has it. `phase` restricts sharing to the first or
    last `share` of the rounds: fraction 1 throughout is harmful for many clients (Table 3).
    """

    kind: Literal["averaged"] = Field(
        "averaged", description="SplitAvg: some clients of each cohort get the mean of their gradients."
    )
    fraction: float = Field(0.5, ge=0, le=1, description="Fraction of the cohort's clients that share one gradient.")
    phase: Literal["always", "first", "last"] = Field(
        "always", description="Rounds in which gradients are shared: all, the first, or the last."
    )
    share: float = Field(0.6, ge=0, le=1, description="Fraction of the rounds, with phase first or last.")
    unequal: Literal["error", "mean"] = Field(
        "error", description="Batches of different sizes are an error, or are averaged over their samples first."
    )
    reduction: Literal["mean", "sum"] = Field(
        "mean", description="The shared gradient is a mean or a sum over the clients."
    )

    @property
    def equal_batches(self) -> bool:
        """True if clients must send batches of one size."""
        return self.unequal == "error"

    def scatter(
        self, gradients: Mapping[int, Tensor], at: At, divisors: Mapping[int, float] | None = None
    ) -> Mapping[int, Tensor]:
        """Return each client's gradient, shared or its own.

        Each dz is (B, *cut): the gradients of its samples' own losses over that client's divisor; without divisors all
        have the same. Raise ConfigError if batches differ in size and `unequal` is error.
        """
        sharing = self.sharing(sorted(gradients), at)
        if len(sharing) < 2:
            return gradients
        divisors = {} if divisors is None or len({divisors[c] for c in sharing}) == 1 else divisors
        common = self._common([_times(gradients[client], divisors.get(client)) for client in sharing])
        if self.reduction == "sum":
            common = common * len(sharing)
        given = {c: common / divisors[c] if divisors else common for c in sharing}
        return {**gradients, **{c: one.expand_as(gradients[c]).contiguous() for c, one in given.items()}}

    def sharing(self, clients: list[int], at: At) -> list[int]:
        """Return the clients that share in this step, a draw by seed, step and the clients present."""
        count = math.floor(_exact(self.fraction) * len(clients)) if self._is_on(at) else 0
        draw = numpy_generator(at.seed, "scatter", at.round, at.wave, at.step)
        return sorted(int(client) for client in draw.choice(clients, count, replace=False))

    def _is_on(self, at: At) -> bool:
        part = _exact(self.share) * at.rounds
        return {"always": True, "first": at.round < part, "last": at.round >= at.rounds - part}[self.phase]

    def _common(self, gradients: list[Tensor]) -> Tensor:
        if self.unequal == "mean":
            return torch.stack([g.mean(dim=0) for g in gradients]).mean(dim=0, keepdim=True)
        sizes = sorted({len(g) for g in gradients})
        if len(sizes) > 1:
            raise ConfigError(
                f"head.scatter.unequal = 'error': batches of {sizes[0]} and {sizes[-1]} samples cannot be averaged by "
                "position; set it to 'mean', or let every client have at least one full batch"
            )
        return torch.stack(gradients).mean(dim=0)


def _times(gradient: Tensor, factor: float | None) -> Tensor:
    return gradient if factor is None else gradient * factor


def _exact(number: float) -> Fraction:
    """Return a number as the decimal that it is written as, so that 0.29 of 100 clients are 29."""
    return Fraction(Decimal(repr(number)))


Scatter = Annotated[Own | Averaged, Field(discriminator="kind")]
