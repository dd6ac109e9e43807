"""Torch's optimisers without the parts that cost time here: the same steps, to the bit."""

from __future__ import annotations

import inspect
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.sgd import sgd

from sl_common.errors import WireError
from sl_common.tensors import all_finite

_Optimizer = torch.optim.Optimizer


class _Uncompiled(_Optimizer):
    """Torch's own methods without two costs.

    Their wrappers import torch's compiler at first use, which takes seconds and 70 MB that nothing here needs. Their
    marks for the profiler take longer than a small step.
    """

    add_param_group = inspect.unwrap(_Optimizer.add_param_group)
    state_dict = inspect.unwrap(_Optimizer.state_dict)
    load_state_dict = inspect.unwrap(_Optimizer.load_state_dict)

    def _patch_step_function(self) -> None:
        """Do nothing; torch's method would wrap `step`."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, or fill them with zeros."""
        for group in self.param_groups:
            for p in group["params"]:
                if set_to_none or p.grad is None:
                    p.grad = None
                else:
                    p.grad.detach_().zero_()


class UncompiledSGD(_Uncompiled, torch.optim.SGD):
    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))


class OnePassSGD(UncompiledSGD):
    """SGD in one pass over the numbers, where that gives the bits of torch's several passes.

    Takes half the time for weights that lie in no cache.
    """

    # Parameters for one pass, and for torch's several passes; None: torch steps all.
    _plan: tuple[_Share, _Share] | None = None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002  (torch's signature)
        """Take a step on the gradients that are present."""
        (group,) = self.param_groups
        if self._plan is None or any(p.grad is None for p in group["params"]):
            super().step()
            self._plan = self._find_plan(group)
            return
        options = {name: group[name] for name in _SGD_OPTIONS}
        once, usual = self._plan
        if once.params:
            one_pass: Any = torch._fused_sgd_
            one_pass(once.params, once.grads, once.moments, **options, is_first_step=False)
        if usual.params:
            sgd(usual.params, usual.grads, usual.moments, **options, foreach=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; the moments are other tensors from now on."""
        self._plan = None
        super().load_state_dict(state_dict)

    def _find_plan(self, group: dict[str, Any]) -> tuple[_Share, _Share] | None:
        """Return which parameters one pass may step.

        Called after a step of torch's, when every parameter has its moment.
        """
        params: list[Tensor] = group["params"]
        if any(p.grad is None or p.grad.is_sparse or p.device.type != "cpu" for p in params):
            return None
        exact = _is_one_pass_exact(*(group[name] for name in _SGD_OPTIONS[1:]))
        once, usual = _Share([], []), _Share([], [])
        for p in params:
            # The one-pass kernel ignores strides.
            plain = p.dtype == torch.float32 and p.numel() % _WHOLE == 0 and p.is_contiguous()
            share = once if exact and plain else usual
            share.params.append(p)
            if group["momentum"] or share is usual:
                share.moments.append(self.state[p].get("momentum_buffer"))
        return once, usual


class _Share(NamedTuple):
    """Some parameters of an optimiser, with their moments."""

    params: list[Tensor]
    moments: list[Tensor | None]

    @property
    def grads(self) -> list[Tensor]:
        """Gradients of the parameters; the caller has checked that none is missing."""
        return [p.grad for p in self.params]  # type: ignore[misc]


_SGD_OPTIONS = ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize")
_WHOLE = 16  # numbers that fill whole vectors on every machine; the rest at a tensor's end may be rounded differently


@lru_cache(maxsize=64)
@torch.no_grad()
def _is_one_pass_exact(*options: float) -> bool:
    """Try whether torch's one-pass kernel rounds as its separate operations do on this machine."""
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


class UncompiledAdam(_Uncompiled, torch.optim.Adam):
    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))


class UncompiledAdamW(_Uncompiled, torch.optim.AdamW):
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


_FREE = {"lr", "foreach", "fused", "capturable", "differentiable"}  # options that each round or the machine sets


def check_optimizer_state(saved: Any, own: torch.optim.Optimizer) -> None:
    """Raise WireError if a snapshot is of another optimiser; torch itself checks neither shapes nor options."""
    (group,), state = own.param_groups, saved["state"]
    (written,) = saved["param_groups"]
    options = own.state_dict()["param_groups"][0]
    if any(written[name] != options[name] for name in options.keys() - _FREE) or written.keys() != options.keys():
        raise WireError(f"a snapshot of an optimiser with {written}, this run has {options}")
    for number, moments in state.items():
        shape = group["params"][number].shape
        for name, moment in moments.items():
            scalar = name == "step" and not isinstance(moment, Tensor | str)
            if (
                moment is None
                or scalar
                or (isinstance(moment, Tensor) and moment.shape in (shape, ()) and all_finite(moment))
            ):
                continue
            raise WireError(
                f"a snapshot of an optimiser whose {name} of parameter {number} is not one of shape {tuple(shape)}"
            )
