"""A trial of a network on two samples before any client connects.

It finds out if the network runs, what a pass changes, and how the backward pass may be made.
"""

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
from sl_common.protocol.mix import Unmixed
from sl_common.seeds import torch_generator
from sl_common.training.backward import backward_from, backward_to, has_large_products
from sl_common.training.modules import buffers_untouched, seeded

_CPU = torch.device("cpu")
_SAMPLES = 2
_IN_PLACE = (
    " Activations that were sent cannot be changed in place, as the first block after the cut does: make it "
    "copy (inplace=False), or cut after it."
)
_CASTS = "; samples come as float32: a block that looks numbers up, as nn.Embedding does, casts them itself (x.long())"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Tried:
    """Result of a trial."""

    z: Tensor  # (2, *cut)
    changed: list[Tensor] = field(default_factory=list)  # buffers that a training pass changes


def initialise(blocks: Sequence[Block], config: RunConfig, seed: int) -> None:
    """Give shapes to modules that take them from their first batch (nn.LazyLinear), with values drawn from `seed`."""
    whole = join(blocks)
    if not any(isinstance(m, LazyModuleMixin) and m.has_uninitialized_params() for m in whole.modules()):
        return
    whole.eval()
    try:
        with seeded(seed, _CPU), torch.no_grad():
            whole(torch.zeros(_SAMPLES, *config.input))
    except Exception as error:  # any error of the modules
        raise ConfigError(
            f"model {config.model.name!r} does not run on input {config.input}: {error}{_hint(error)}"
        ) from error
    whole.train()


def try_out(blocks: Sequence[Block], cut: int, config: RunConfig) -> Tried:
    """Run one forward and backward pass on zeros, and refuse a model that cannot run before any client connects.

    A hollow head is not run.
    """
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
    except Exception as error:  # any error of the modules
        raise ConfigError(
            f"model {config.model.name!r} cut at {config.model.cut!r} does not run on input {config.input}: "
            f"{error}{_hint(error)}"
        ) from error
    finally:
        for _, block in blocks:
            block.zero_grad(set_to_none=True)
    if logits.shape != (_SAMPLES, config.classes):
        raise ConfigError(
            f"model {config.model.name!r} gives {tuple(logits.shape[1:])} per sample, data have {config.classes} "
            "classes"
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
            f"the cut must be one tensor of floating point numbers (float16, bfloat16, float32, float64), got "
            f"{_kind_of(z)}"
        )


def _kind_of(found: object) -> str:
    return str(found.dtype) if isinstance(found, Tensor) else type(found).__name__


def reason_against_halves(head: nn.Module, z: Tensor) -> str | None:
    """Return why a reply cannot go out before the head's backward pass is complete, or None if it can.

    In two halves the pass may fail, or give other gradients than in one.
    """
    if not has_large_products(head):
        return None
    z = z + torch.randn(z.shape, generator=torch_generator("trial")).to(z.dtype)
    try:
        whole = _gradients(head, z, halves=False)
    except Exception:  # a model need not accept noise; then nothing is known
        return None
    try:
        halved = _gradients(head, z, halves=True)
    except Exception as error:  # any error of the modules or autograd
        return first_line(error)
    if whole.keys() == halved.keys() and all(alike(whole[name], halved[name]) for name in whole):
        return None
    return "in two halves it gives other gradients"


def untrained_without_gradient(module: nn.Module, x: Tensor) -> list[str]:
    """Return the parameters that get a gradient only if the input wants one too.

    Activation checkpointing in its reentrant form is such a case.
    """
    try:
        wanted = _gradients(module, x, halves=False)
        plain = _gradients(module, x, halves=False, wants=False)
    except Exception:
        # A module need not accept an input that wants a gradient: it may change it in place.
        return []
    return sorted(wanted.keys() - plain.keys() - {""})


def _gradients(module: nn.Module, x: Tensor, *, halves: bool, wants: bool = True) -> dict[str, Tensor]:
    """Return the gradients of a cross-entropy by name, the input's under an empty name; leaves nothing else behind."""
    x = x.detach().requires_grad_(wants)
    try:
        with seeded(0, _CPU), buffers_untouched(module), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about the very faults that this looks for
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


def try_backward(config: RunConfig, lower: nn.Module, head: nn.Module, z: Tensor) -> tuple[bool, list[str]]:
    """Return True if the head's backward pass may be made in halves, and cautions about both sides' passes.

    Raise ConfigError if the head would not be trained.
    """
    halves, cautions = True, []
    what = f"model {config.model.name!r} cut at {config.model.cut!r}"
    if config.server.reply_first and (reason := reason_against_halves(head, z)) is not None:
        halves = False
        cautions.append(
            f"server.reply_first = true: the backward pass of the head of {what} is made whole before replies go out, "
            f"since it cannot be made in two halves ({reason})"
        )
    reentrant = "as with torch.utils.checkpoint and use_reentrant=True, for which use_reentrant=False is the way out"
    learner, mix = config.protocol.learner, config.protocol.head.mix
    asks_none = learner.exchange == "activation" or not isinstance(mix, Unmixed)
    if asks_none and (names := untrained_without_gradient(head, z)):
        raise ConfigError(
            f"protocol.learner.kind = {learner.kind!r}, protocol.head.mix.kind = {mix.kind!r}: the head is trained on "
            f"activations for which nobody wants a gradient, and then {', '.join(names[:3])} of {what} would not be "
            f"trained, {reentrant}"
        )
    if names := untrained_without_gradient(lower, torch.zeros(2, *config.input)):
        cautions.append(f"{what}: {', '.join(names[:3])} of the lower segment get no gradient, {reentrant}")
    return halves, cautions
