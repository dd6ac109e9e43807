"""Optimisers and learning-rate schedules as values. State lives in the Segment that makes one."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch.nn import Parameter

from sl_common.value import Value

_Optimizer = torch.optim.Optimizer


class _Uncompiled(_Optimizer):
    """Torch's own methods without the wrappers that import its compiler at first use, which costs seconds and 70 MB that nobody here needs."""

    add_param_group = inspect.unwrap(_Optimizer.add_param_group)
    zero_grad = inspect.unwrap(_Optimizer.zero_grad)
    state_dict = inspect.unwrap(_Optimizer.state_dict)
    load_state_dict = inspect.unwrap(_Optimizer.load_state_dict)


class _SGD(_Uncompiled, torch.optim.SGD):
    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))


class _Adam(_Uncompiled, torch.optim.Adam):
    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))


class _AdamW(_Uncompiled, torch.optim.AdamW):
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


Fraction = Annotated[float, Field(ge=0, lt=1)]


class Constant(Value):
    """η(round) = η."""

    kind: Literal["constant"] = "constant"

    def factor(self, round: int, rounds: int) -> float:  # noqa: ARG002
        """What the base rate is multiplied by in this round (from 0)."""
        return 1.0


class StepDecay(Value):
    """η · gamma^(number of milestones reached), as torch.optim.lr_scheduler.MultiStepLR by round."""

    kind: Literal["step"] = "step"
    milestones: tuple[PositiveInt, ...]
    gamma: PositiveFloat = 0.1

    def factor(self, round: int, rounds: int) -> float:  # noqa: ARG002
        """What the base rate is multiplied by in this round (from 0)."""
        return float(self.gamma ** sum(round >= milestone for milestone in self.milestones))


class Cosine(Value):
    """η_min + (1 − η_min)·(1 + cos(π·round/rounds))/2, as CosineAnnealingLR with T_max = rounds (Loshchilov & Hutter 2017)."""

    kind: Literal["cosine"] = "cosine"
    floor: Annotated[float, Field(ge=0, le=1)] = 0.0  # of the base rate

    def factor(self, round: int, rounds: int) -> float:
        """What the base rate is multiplied by in this round (from 0)."""
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * round / rounds)) / 2


Schedule = Annotated[Constant | StepDecay | Cosine, Field(discriminator="kind")]


class Sgd(Value):
    """torch.optim.SGD."""

    kind: Literal["sgd"] = "sgd"
    lr: PositiveFloat = 0.05
    momentum: Fraction = 0.0
    dampening: NonNegativeFloat = 0.0
    weight_decay: NonNegativeFloat = 0.0
    nesterov: bool = False

    @property
    def moments(self) -> int:
        """Tensors that it keeps beside each parameter."""
        return int(self.momentum > 0)

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> Self:
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            raise ValueError(
                f"nesterov needs a momentum above 0 and no dampening (momentum = {self.momentum}, dampening = {self.dampening})"
            )
        return self

    def make(self, params: Iterable[Parameter], *, fused: bool | None = None) -> torch.optim.Optimizer:
        """A fresh optimiser over `params`."""
        return _SGD(params, **self.model_dump(exclude={"kind"}), fused=fused)


class Adam(Value):
    """torch.optim.Adam; with `kind = "adamw"`, torch.optim.AdamW (decoupled weight decay)."""

    kind: Literal["adam", "adamw"] = "adam"
    lr: PositiveFloat = 1e-3
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat | None = None  # torch's own default: 0 for adam, 0.01 for adamw
    amsgrad: bool = False

    @property
    def moments(self) -> int:
        """Tensors that it keeps beside each parameter."""
        return 2 + self.amsgrad

    def make(self, params: Iterable[Parameter], *, fused: bool | None = None) -> torch.optim.Optimizer:
        """A fresh optimiser over `params`; `fused` reads them once a step, which changes last bits."""
        options = self.model_dump(exclude={"kind"}, exclude_none=True)
        return (_Adam if self.kind == "adam" else _AdamW)(params, **options, fused=fused)


Optimizer = Annotated[Sgd | Adam, Field(discriminator="kind")]


class Training(Value):
    """How one side's segments learn."""

    optimizer: Optimizer = Sgd(lr=0.05, momentum=0.9)
    schedule: Schedule = Constant()

    def lr(self, round: int, rounds: int) -> float:
        """The learning rate of a round: base × schedule, a pure function."""
        return self.optimizer.lr * self.schedule.factor(round, rounds)
