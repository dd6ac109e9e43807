"""A network tried out on two samples before anybody connects: whether it runs, what it changes, and how its backward pass may be made."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from sl_common.config.run_config import RunConfig
from sl_common.errors import ConfigError, first_line
from sl_common.kinds import alike, is_real
from sl_common.models import Block, join
from sl_common.seeds import torch_generator
from sl_common.training.backward import backward_from, backward_to, has_large_products
from sl_common.training.segment import buffers_untouched, seeded

_CPU = torch.device("cpu")
_SAMPLES = 2
_IN_PLACE = " What was sent cannot be changed in place, as the first block after the cut does: let it not (inplace=False), or cut after it."
_CASTS = "; samples come as float32: a block that looks numbers up, as nn.Embedding does, casts them itself (x.long())"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Tried:
    """What a trial came to."""

    z: Tensor  # (2, *cut)
    changed: list[Tensor] = field(default_factory=list)  # buffers that a pass changes


def initialise(blocks: Sequence[Block], config: RunConfig, seed: int) -> None:
    """Give their shapes to modules that take them from their first batch (nn.LazyLinear), with values drawn from `seed`."""
    whole = join(blocks)
    if not any(isinstance(m, LazyModuleMixin) and m.has_uninitialized_params() for m in whole.modules()):
        return
    whole.eval()
    try:
        with seeded(seed, _CPU), torch.no_grad():
            whole(torch.zeros(_SAMPLES, *config.input))
    except Exception as error:  # whatever the modules raise
        raise ConfigError(
            f"model {config.model.name!r} does not run on input {config.input}: {error}{_hint(error)}"
        ) from error
    whole.train()


def try_out(blocks: Sequence[Block], cut: int, config: RunConfig) -> Tried:
    """One forward and backward on zeros, so that a model that cannot run is refused before anybody connects; of a hollow head none."""
    lower, head = join(blocks[:cut]), join(blocks[cut:])
    try:
        x = torch.zeros(_SAMPLES, *config.input)
        with seeded(0, _CPU), buffers_untouched(lower) as changed_below, buffers_untouched(head) as changed_above:
            z = lower(x)
            _check_cut(z)
            z = z.detach()
            if any(t.is_meta for t in head.parameters()):
                return Tried(z=z)
            logits = head(z.requires_grad_())
            if not isinstance(logits, Tensor) or not is_real(logits.dtype):
                raise TypeError(f"the output must be floating-point numbers, got {_kind_of(logits)}")
            logits.sum().backward()  # type: ignore[no-untyped-call]
            changed = [*changed_below(), *changed_above()]
    except Exception as error:  # whatever the modules raise
        raise ConfigError(
            f"model {config.model.name!r} cut at {config.model.cut!r} does not run on input {config.input}: {error}{_hint(error)}"
        ) from error
    finally:
        for _, block in blocks:
            block.zero_grad(set_to_none=True)
    if logits.shape != (_SAMPLES, config.classes):
        raise ConfigError(
            f"model {config.model.name!r} gives {tuple(logits.shape[1:])} per sample, data have {config.classes} classes"
        )
    return Tried(z=z.detach(), changed=changed)


def _hint(error: Exception) -> str:
    text = str(error)
    if "Float" in text and ("indices" in text or "Long" in text):
        return _CASTS
    return _IN_PLACE if "leaf Variable" in text and "in-place" in text else ""


def _check_cut(z: object) -> None:
    if not isinstance(z, Tensor) or not z.is_floating_point() or not is_real(z.dtype):
        raise TypeError(
            f"the cut must be one tensor of floating point numbers (float16, bfloat16, float32, float64), got {_kind_of(z)}"
        )


def _kind_of(found: object) -> str:
    return str(found.dtype) if isinstance(found, Tensor) else type(found).__name__


def reason_against_halves(head: nn.Module, z: Tensor) -> str | None:
    """Why a reply cannot go out before the head's backward pass is complete: in two halves it fails, or gives other gradients than in one."""
    if not has_large_products(head):
        return None
    z = z + torch.randn(z.shape, generator=torch_generator("trial")).to(z.dtype)
    try:
        whole = _gradients(head, z, halves=False)
    except Exception:  # of noise it makes nothing, as it may: nothing is known
        return None
    try:
        halved = _gradients(head, z, halves=True)
    except Exception as error:  # whatever the modules and autograd raise
        return first_line(error)
    if whole.keys() == halved.keys() and all(alike(whole[name], halved[name]) for name in whole):
        return None
    return "in two halves it gives other gradients"


def untrained_without_gradient(module: nn.Module, x: Tensor) -> list[str]:
    """Parameters that get a gradient only where the input wants one too, as with activation checkpointing in its reentrant form."""
    try:
        wanted = _gradients(module, x, halves=False)
        plain = _gradients(module, x, halves=False, wants=False)
    except Exception:
        # An input that wants a gradient is more than it needs to take, such as one that it changes in place.
        return []
    return sorted(wanted.keys() - plain.keys() - {""})


def _gradients(module: nn.Module, x: Tensor, *, halves: bool, wants: bool = True) -> dict[str, Tensor]:
    """Those of a cross-entropy by name, that of the input by none; nothing else is left of the pass."""
    x = x.detach().requires_grad_(wants)
    try:
        with seeded(0, _CPU), buffers_untouched(module), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is looked for here
            out = module(x).flatten(1)
            loss = F.cross_entropy(out, torch.zeros(len(out), dtype=torch.int64))
            if loss.requires_grad and halves:
                backward_to(x, loss)()
            elif loss.requires_grad:
                backward_from(loss, torch.ones_like(loss))
        found = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
        return found if x.grad is None else {**found, "": x.grad}
    finally:
        for parameter in module.parameters():
            parameter.grad = None
