"""All places where a network can be cut, with the cost of each: bytes of a step, the client's memory."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch
from torch import nn

from sl_common.config.run_config import RunConfig
from sl_common.copied import copied
from sl_common.errors import ConfigError
from sl_common.messages.training import Smashed
from sl_common.models import Block, join
from sl_common.network.footprint import Footprint, kept_by, nbytes_of
from sl_common.network.network import Network, message_limit
from sl_common.network.parts import auxiliary_fit
from sl_common.network.ties import ties_of
from sl_common.seeds import torch_generator
from sl_server.core.preflight import most_in_batch
from sl_server.preflight.traffic import StepTraffic, traffic_down, traffic_up


@dataclass(frozen=True, kw_only=True, slots=True)
class CutOption:
    """One place where the network can be cut."""

    cut: int
    after: str
    shape: tuple[int, ...]  # of one sample
    up: StepTraffic  # of one step's Smashed
    down: StepTraffic  # of its Gradient
    lower_bytes: int
    # weights, gradients, optimiser state, and the activations that autograd keeps of one batch; also of an auxiliary
    # network
    client_memory: int


def try_cut(network: Network, cut: int, config: RunConfig) -> CutOption | None:
    """Measure a cut. Return None if the network cannot be cut there, unless it is the configured cut, whose error is
    raised."""
    try:
        return _cut(list(network.blocks), cut, config, network.weights_nbytes)
    except Exception:  # the model's modules may raise anything
        if cut == network.cut:
            raise
        return None


def _cut(blocks: list[Block], cut: int, config: RunConfig, weights: int) -> CutOption | None:
    """Measure a cut. Return None if several tensors cross it, or one without gradients, or if both sides would share
    weights."""
    lower = join(blocks[:cut])
    try:
        ties_of({"lower": lower, "head": join(blocks[cut:])}, config.model.name, cut)
    except ConfigError:
        return None
    lower = copied(lower)
    x, z, kept = _forward_noise(lower, config)
    if not isinstance(z, torch.Tensor) or not z.is_floating_point() or len(z) != len(x):
        return None
    z = z.detach()
    y = torch.zeros(len(x), dtype=torch.int64)
    client = config.client
    limit = message_limit(z, config.classes, weights)
    memory = Footprint.of(lower, client.optimizer, kept + nbytes_of([z]))
    chosen = getattr(config.protocol.learner, "aux", None)
    if chosen is not None:
        try:
            aux = chosen.make(auxiliary_fit(config, tuple(z.shape[1:]), cut, None))
        except ConfigError:  # the network fits the configured cut, but not this one
            return None
        kept = kept_by(aux, z.clone().requires_grad_())[1]
        memory += Footprint.of(aux, client.aux_optimizer or client.optimizer, kept)
    return CutOption(
        cut=cut,
        after=blocks[cut - 1][0],
        shape=tuple(z.shape[1:]),
        up=traffic_up(Smashed(step=1, z=z, y=y), config, limit),
        down=traffic_down(z, config, limit),
        lower_bytes=nbytes_of(lower.state_dict().values()),
        client_memory=memory.segment + memory.activations,
    )


def _forward_noise(lower: nn.Module, config: RunConfig) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Return a batch of noise, its activations, and the bytes that autograd keeps.

    Zeros replace noise where the network refuses it: word numbers, for example, are integers from 0 on. The network
    was tried on zeros before.
    """
    noise = torch.randn(most_in_batch(config), *config.input, generator=torch_generator(config.run.seed, "check"))
    with contextlib.suppress(Exception):  # the user's modules may raise anything
        return noise, *kept_by(lower, noise)
    zeros = torch.zeros_like(noise)
    try:
        return zeros, *kept_by(lower, zeros)
    except Exception as error:
        raise ConfigError(
            f"model {config.model.name!r} does not run on a batch of {len(zeros)} samples {config.input}: "
            f"{error!r:.300}"
        ) from error
