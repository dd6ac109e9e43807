"""Optimisers and learning-rate schedules as values. State lives in the Segment that makes one."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch.nn import Parameter

from sl_common.training.torch_optimizers import OnePassSGD, UncompiledAdam, UncompiledAdamW, UncompiledSGD
from sl_common.value import Value

Fraction = Annotated[float, Field(ge=0, lt=1)]


class Constant(Value):
    """η(round) = η."""

    kind: Literal["constant"] = Field("constant", description="Constant learning rate.")

    def factor(self, round: int, rounds: int) -> float:  # noqa: ARG002
        """Return the factor of the base rate in this round (from 0)."""
        return 1.0


class StepDecay(Value):
    """η · gamma^(number of milestones reached), as torch.optim.lr_scheduler.MultiStepLR by round."""

    kind: Literal["step"] = Field("step", description="Learning rate multiplied by gamma at each milestone.")
    milestones: tuple[PositiveInt, ...] = Field(description="Rounds at which the learning rate is multiplied by gamma.")
    gamma: PositiveFloat = Field(0.1, description="Factor at each milestone.")

    def factor(self, round: int, rounds: int) -> float:  # noqa: ARG002
        """Return the factor of the base rate in this round (from 0)."""
        return float(self.gamma ** sum(round >= milestone for milestone in self.milestones))


class Cosine(Value):
    """η_min + (1 − η_min)·(1 + cos(π·round/rounds))/2, as CosineAnnealingLR with T_max = rounds.

    Source: Loshchilov & Hutter 2017.
    """

    kind: Literal["cosine"] = Field("cosine", description="Cosine annealing over the rounds.")
    floor: float = Field(0.0, ge=0, le=1, description="Lowest learning rate, as a fraction of the base rate.")

    def factor(self, round: int, rounds: int) -> float:
        """Return the factor of the base rate in this round (from 0)."""
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * round / rounds)) / 2


Schedule = Annotated[Constant | StepDecay | Cosine, Field(discriminator="kind")]


class Sgd(Value):
    """torch.optim.SGD."""

    kind: Literal["sgd"] = Field("sgd", description="Stochastic gradient descent (torch.optim.SGD).")
    lr: PositiveFloat = Field(0.05, description="Learning rate.")
    momentum: Fraction = Field(0.0, description="Momentum.")
    dampening: NonNegativeFloat = Field(0.0, description="Dampening of the momentum.")
    weight_decay: NonNegativeFloat = Field(0.0, description="Weight decay (an L2 penalty).")
    nesterov: bool = Field(False, description="Use Nesterov momentum.")

    @property
    def moments(self) -> int:
        """Number of tensors that the optimiser keeps beside each parameter."""
        return int(self.momentum > 0)

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> Self:
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            raise ValueError(
                f"nesterov needs a momentum above 0 and no dampening (momentum = {self.momentum}, dampening = "
                f"{self.dampening})"
            )
        return self

    def make(self, params: Iterable[Parameter], *, fused: bool | None = None) -> torch.optim.Optimizer:
        """Return a fresh optimiser over `params`; with `fused`, last bits may change."""
        options = self.model_dump(exclude={"kind"})
        return UncompiledSGD(params, **options, fused=True) if fused else OnePassSGD(params, **options)


class Adam(Value):
    """torch.optim.Adam; with `kind = "adamw"`, torch.optim.AdamW (decoupled weight decay)."""

    kind: Literal["adam", "adamw"] = Field(
        "adam", description="Adam (torch.optim.Adam), or AdamW with decoupled weight decay (torch.optim.AdamW)."
    )
    lr: PositiveFloat = Field(1e-3, description="Learning rate.")
    betas: tuple[Fraction, Fraction] = Field(
        (0.9, 0.999), description="Decay rates of the running means of the gradient and of its square."
    )
    eps: PositiveFloat = Field(1e-8, description="Number added to the denominator for numerical stability.")
    weight_decay: NonNegativeFloat | None = Field(
        None, description="Weight decay; by default torch's own: 0 for adam, 0.01 for adamw."
    )
    amsgrad: bool = Field(False, description="Use the AMSGrad variant.")

    @property
    def moments(self) -> int:
        """Number of tensors that the optimiser keeps beside each parameter."""
        return 2 + self.amsgrad

    def make(self, params: Iterable[Parameter], *, fused: bool | None = None) -> torch.optim.Optimizer:
        """Return a fresh optimiser over `params`; with `fused`, one pass a step, which changes last bits."""
        options = self.model_dump(exclude={"kind"}, exclude_none=True)
        return (UncompiledAdam if self.kind == "adam" else UncompiledAdamW)(params, **options, fused=fused)


Optimizer = Annotated[Sgd | Adam, Field(discriminator="kind")]


class TrainingConfig(Value):
    """Optimiser and learning rate of one side's segments."""

    optimizer: Optimizer = Field(Sgd(lr=0.05, momentum=0.9), description="Optimiser of the segments.")
    schedule: Schedule = Field(Constant(), description="Learning rate over the rounds, relative to the base rate.")

    def lr(self, round: int, rounds: int) -> float:
        """Return the learning rate of a round: base rate × schedule, a pure function."""
        return self.optimizer.lr * self.schedule.factor(round, rounds)
