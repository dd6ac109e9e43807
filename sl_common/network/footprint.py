"""Memory that the training of a segment takes on a device.

Pure: estimated from the sizes of its weights, and from a pass of two samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from sl_common.config.run_config import RunConfig
from sl_common.network.network import Network
from sl_common.network.parts import outline
from sl_common.training.modules import buffers_untouched, seeded
from sl_common.training.optim import Optimizer

FACTOR = 3  # times the activations: themselves, their gradients in a backward pass, and the message under way
_TRIED = 2  # samples in a trial; activations grow with the batch


@dataclass(frozen=True, kw_only=True, slots=True)
class Footprint:
    """Bytes of one segment, or of several together."""

    weights: int  # parameters and buffers
    gradients: int
    optimizer: int  # the optimiser's state
    activations: int  # tensors that autograd keeps of one batch, and the output

    @classmethod
    def of(cls, module: nn.Module, optimizer: Optimizer, activations: int) -> Self:
        """Return the footprint of a module that keeps this number of bytes of a batch."""
        trained = sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad)
        return cls(
            weights=nbytes_of(module.state_dict().values()),
            gradients=trained,
            optimizer=trained * optimizer.moments,
            activations=activations,
        )

    def __add__(self, other: Footprint) -> Footprint:
        return Footprint(
            weights=self.weights + other.weights,
            gradients=self.gradients + other.gradients,
            optimizer=self.optimizer + other.optimizer,
            activations=self.activations + other.activations,
        )

    @property
    def segment(self) -> int:
        """Bytes between two batches."""
        return self.weights + self.gradients + self.optimizer

    @property
    def needed(self) -> int:
        """Bytes that a client should have for it."""
        return self.segment + FACTOR * self.activations


def nbytes_of(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of the tensors' elements; a tensor under several names counts once."""
    places = {(t.untyped_storage()._cdata, t.storage_offset(), t.shape): t for t in tensors}
    return sum(t.numel() * t.element_size() for t in places.values())


def kept_by(module: nn.Module, x: Tensor) -> tuple[Tensor, int]:
    """Run a forward pass in training mode; return its output and the bytes of the tensors that autograd keeps.

    Each memory counts once. The module's own parameters and buffers do not count, and its buffers are unchanged
    afterwards.
    """
    own = (*module.parameters(), *module.buffers())
    seen = {t.untyped_storage()._cdata for t in own if t.layout == torch.strided}
    alive: list[Tensor] = []  # kept alive so that no address is used twice
    kept = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal kept
        if tensor.layout != torch.strided:
            return tensor
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            alive.append(tensor)
            kept += tensor.numel() * tensor.element_size()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t)
    with seeded(0, torch.device("cpu")), buffers_untouched(module), hooks:
        z: Tensor = module(x)
    return z, kept


def at_rest(config: RunConfig) -> Footprint:
    """Return the footprint of a client between two batches, for a built-in model, which is not made for it.

    An auxiliary network is not counted.
    """
    modules = outline(config)
    found = [
        Footprint.of(modules[p], config.client.optimizer, 0) for p in config.protocol.learner.parts if p in modules
    ]
    return sum(found[1:], found[0])


def weights_below(config: RunConfig) -> Footprint:
    """Return the footprint of the lower segment of a built-in model that only answers queries."""
    weights = nbytes_of(outline(config)["lower"].state_dict().values())
    return Footprint(weights=weights, gradients=0, optimizer=0, activations=0)


def trial_of(config: RunConfig) -> Footprint:
    """Return the footprint of the samples on which a network is tried out."""
    nbytes = _TRIED * math.prod(config.input) * torch.float32.itemsize
    return Footprint(weights=0, gradients=0, optimizer=0, activations=nbytes)


def footprint_of(config: RunConfig, network: Network) -> Footprint:
    """Return the footprint of everything that a client holds in a run, estimated from two samples.

    Raise whatever the user's own modules raise.
    """
    client, parts = config.client, config.protocol.learner.parts
    z, kept = kept_by(network.lower, torch.zeros(_TRIED, *config.input))
    found = Footprint.of(network.lower, client.optimizer, _of_batch(kept + nbytes_of([z]), config))
    for part, optimizer in (("head", client.optimizer), ("aux", client.aux_optimizer or client.optimizer)):
        if part in parts:
            module = network.part(part)
            _, kept = kept_by(module, z.detach().requires_grad_())
            found += Footprint.of(module, optimizer, _of_batch(kept, config))
    return found


def _of_batch(nbytes: int, config: RunConfig) -> int:
    return nbytes * config.largest_batch // _TRIED
