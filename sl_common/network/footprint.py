"""What training a segment takes of a device's memory. Pure: told from the sizes of its weights, and from a pass of two samples."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from sl_common.config.run_config import RunConfig
from sl_common.network.network import Network, outline
from sl_common.training.optim import Optimizer
from sl_common.training.segment import buffers_untouched, seeded

FACTOR = 3  # of the activations: they themselves, the gradients that a backward pass makes of them, and the message under way
_TRIED = 2  # samples of a trial; activations grow with the batch


@dataclass(frozen=True, kw_only=True, slots=True)
class Footprint:
    """Bytes of one segment, or of several together."""

    weights: int  # parameters and buffers
    gradients: int
    optimizer: int  # its state
    activations: int  # what autograd keeps of one batch, and what comes out

    @classmethod
    def of(cls, module: nn.Module, optimizer: Optimizer, activations: int) -> Self:
        """Of a module that keeps so many bytes of a batch."""
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
        """What is there between two batches."""
        return self.weights + self.gradients + self.optimizer

    @property
    def needed(self) -> int:
        """What a client should have for it."""
        return self.segment + FACTOR * self.activations


def nbytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of their elements, those of one tensor under several names once."""
    places = {(t.untyped_storage()._cdata, t.storage_offset(), t.shape): t for t in tensors}
    return sum(t.numel() * t.element_size() for t in places.values())


def kept_by(module: nn.Module, x: Tensor) -> tuple[Tensor, int]:
    """A forward pass in training mode, and the bytes of the tensors that autograd keeps of it, each memory counted once.

    The module's own parameters and buffers are not among them, and its buffers are afterwards what they were.
    """
    own = (*module.parameters(), *module.buffers())
    seen = {t.untyped_storage()._cdata for t in own if t.layout == torch.strided}
    alive: list[Tensor] = []  # so that no address is used twice
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
    """Of a client between two batches, for a model of ours, which is not built for it; an auxiliary network is not counted."""
    modules = outline(config)
    found = [
        Footprint.of(modules[p], config.client.optimizer, 0) for p in config.protocol.learner.parts if p in modules
    ]
    return sum(found[1:], found[0])


def weights_below(config: RunConfig) -> Footprint:
    """Of the lower segment of a model of ours that is only asked."""
    weights = nbytes_of(outline(config)["lower"].state_dict().values())
    return Footprint(weights=weights, gradients=0, optimizer=0, activations=0)


def trial_of(config: RunConfig) -> Footprint:
    """Of the samples that a network is tried out on when it is made."""
    nbytes = _TRIED * math.prod(config.input) * torch.float32.itemsize
    return Footprint(weights=0, gradients=0, optimizer=0, activations=nbytes)


def footprint_of(config: RunConfig, network: Network) -> Footprint:
    """Of all that a client holds in a run, told from two samples. Raises what the user's own modules raise."""
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
