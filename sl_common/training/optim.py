"""Optimisers and learning-rate schedules as values. State lives in the Segment that makes one."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable
from functools import lru_cache, partial
from typing import Annotated, Any, Literal, NamedTuple, Self

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor
from torch.nn import Parameter
from torch.optim.sgd import sgd

from sl_common.value import Value

_Optimizer = torch.optim.Optimizer


class _Uncompiled(_Optimizer):
    """Torch's own methods without the wrappers that import its compiler at first use, which costs seconds and 70 MB that nobody here needs,
    and without the marks for its profiler, which take longer than a small step."""

    add_param_group = inspect.unwrap(_Optimizer.add_param_group)
    state_dict = inspect.unwrap(_Optimizer.state_dict)
    load_state_dict = inspect.unwrap(_Optimizer.load_state_dict)

    def _patch_step_function(self) -> None:
        """Torch's would wrap `step`."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, or fill them with zeros."""
        for group in self.param_groups:
            for p in group["params"]:
                if set_to_none or p.grad is None:
                    p.grad = None
                else:
                    p.grad.detach_().zero_()


class _PlainSGD(_Uncompiled, torch.optim.SGD):
    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))


class _SGD(_PlainSGD):
    """Takes one pass over the numbers where that gives the bits of torch's several: half the time for weights that lie in no cache."""

    _plan: tuple[_Share, _Share] | None = None  # in one pass, and as torch does it; None: all as torch does it

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002  (torch's signature)
        """On the gradients that are there."""
        (group,) = self.param_groups
        if self._plan is None or any(p.grad is None for p in group["params"]):
            super().step()
            self._plan = self._find_plan(group)
            return
        options = {name: group[name] for name in _SGD_OPTIONS}
        once, usual = self._plan
        if once.params:
            torch._fused_sgd_(once.params, once.grads, once.moments, **options, is_first_step=False)  # type: ignore[arg-type]
        if usual.params:
            sgd(usual.params, usual.grads, usual.moments, **options, foreach=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The moments are others from now on."""
        self._plan = None
        super().load_state_dict(state_dict)

    def _find_plan(self, group: dict[str, Any]) -> tuple[_Share, _Share] | None:
        """After a step that torch took: every parameter has its moment then."""
        params: list[Tensor] = group["params"]
        if any(p.grad is None or p.grad.is_sparse or p.device.type != "cpu" for p in params):
            return None
        exact = _is_one_pass_exact(*(group[name] for name in _SGD_OPTIONS[1:]))
        once, usual = _Share([], []), _Share([], [])
        for p in params:
            # one pass knows no strides
            plain = p.dtype == torch.float32 and p.numel() % _WHOLE == 0 and p.is_contiguous()
            share = once if exact and plain else usual
            share.params.append(p)
            if group["momentum"] or share is usual:
                share.moments.append(self.state[p].get("momentum_buffer"))
        return once, usual


class _Share(NamedTuple):
    """Some parameters of an optimiser and their moments."""

    params: list[Tensor]
    moments: list[Tensor | None]

    @property
    def grads(self) -> list[Tensor]:
        """All are there."""
        return [p.grad for p in self.params]  # type: ignore[misc]


_SGD_OPTIONS = ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize")
_WHOLE = 16  # numbers: whole vectors on every machine; what is left over at a tensor's end may be rounded otherwise


@lru_cache(maxsize=64)
@torch.no_grad()
def _is_one_pass_exact(*options: float) -> bool:
    """Whether torch's kernel for one pass rounds as its separate operations do on this machine: it is tried."""
    if not hasattr(torch, "_fused_sgd_"):
        return False
    named = dict(zip(_SGD_OPTIONS, (0.05, *options), strict=True))
    drawn = torch.randn(3, 64 * _WHOLE, generator=torch.Generator().manual_seed(0))
    found = []
    for step in (partial(torch._fused_sgd_, is_first_step=False), partial(sgd, foreach=False)):
        p, grad, moment = (row.clone() for row in drawn)
        step([p], [grad], [moment] if named["momentum"] else [None] if step.func is sgd else [], **named)
        found.append((p, moment))
    return all(torch.equal(a, b) for a, b in zip(*found, strict=True))


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
        """A fresh optimiser over `params`; `fused` lets last bits change."""
        options = self.model_dump(exclude={"kind"})
        return _PlainSGD(params, **options, fused=True) if fused else _SGD(params, **options)


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


class TrainingConfig(Value):
    """How one side's segments learn."""

    optimizer: Optimizer = Sgd(lr=0.05, momentum=0.9)
    schedule: Schedule = Constant()

    def lr(self, round: int, rounds: int) -> float:
        """The learning rate of a round: base × schedule, a pure function."""
        return self.optimizer.lr * self.schedule.factor(round, rounds)
