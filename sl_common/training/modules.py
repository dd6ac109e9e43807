"""Passes over a module that leave no trace: draws from a given seed, and buffers that are what they were."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sl_common.errors import ConfigError
from sl_common.kinds import bits


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw random numbers from `seed` inside the context; the generators outside stay as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


@contextmanager
def buffers_untouched(module: nn.Module) -> Iterator[Callable[[], list[Tensor]]]:
    """Restore every buffer (counters too) when the context ends; inside, BatchNorm in train mode uses batch statistics.

    Copies take the buffers' places meanwhile, so that nothing that autograd saved is written in place. Yields a
    function that returns, inside the context, the buffers that have changed.
    """
    originals = [(m, name, b) for m in module.modules() for name, b in m._buffers.items() if b is not None]
    copies = {id(b): b.clone() for _, _, b in originals}  # one copy of each, also if it has several names
    versions = {key: copied._version for key, copied in copies.items()}

    def changed() -> list[Tensor]:
        return [b for m, name, b in originals if _differs(m._buffers[name], copies[id(b)], b, versions[id(b)])]

    for owner, name, buffer in originals:
        owner._buffers[name] = copies[id(buffer)]
    try:
        yield changed
    finally:
        for owner, name, buffer in originals:
            owner._buffers[name] = buffer


def _differs(now: Tensor | None, copied: Tensor, before: Tensor, version: int) -> bool:
    if now is not copied or copied._version != version:
        return True
    plain = copied.layout == torch.strided and not copied.is_meta and not copied.is_quantized
    return plain and not torch.equal(bits(copied), bits(before))


_DRAWING = (nn.modules.dropout._DropoutNd, nn.RReLU, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)


def draws_random_numbers(module: nn.Module) -> bool:
    """Return True if a forward pass may draw random numbers: in dropout, or in a module that is not torch's own."""
    return any(
        not type(m).__module__.startswith("torch.nn.")
        or isinstance(m, _DRAWING)
        or (isinstance(dropout := getattr(m, "dropout", 0.0), float) and dropout > 0)
        for m in module.modules()
    )


def require_gradient(output: Tensor, grad: Tensor | None) -> None:
    """Raise ConfigError if no gradient came back for an output that is no loss."""
    if grad is None and output.dim():
        raise ConfigError(
            "no gradient comes back for the output of the lower segment: the head, or an auxiliary network made of its "
            "blocks, detaches its input"
        )
