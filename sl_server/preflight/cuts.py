"""Every place where a network can be cut, and what each costs: bytes of a step, the client's memory."""

from __future__ import annotations

import contextlib
import copy
from dataclasses import dataclass

import torch
from torch import nn

from sl_common.config.run_config import RunConfig
from sl_common.errors import ConfigError
from sl_common.messages.training import Smashed
from sl_common.models import Block, join
from sl_common.network.contents import ties_of
from sl_common.network.footprint import Footprint, kept_by, nbytes_of
from sl_common.network.network import Network, auxiliary_fit, message_limit
from sl_common.seeds import torch_generator
from sl_server.core.preflight import most_in_batch
from sl_server.preflight.traffic import StepTraffic, traffic_down, traffic_up


@dataclass(frozen=True, kw_only=True, slots=True)
class CutOption:
    """One place where the network could be cut."""

    cut: int
    after: str
    shape: tuple[int, ...]  # of one sample
    up: StepTraffic  # one step's Smashed
    down: StepTraffic  # its Gradient
    lower_bytes: int
    client_memory: int  # weights, gradients, optimiser state and what autograd keeps of one batch; an auxiliary's too


def try_cut(network: Network, cut: int, config: RunConfig) -> CutOption | None:
    """None at another place than the configured one that the network, or what goes with it, cannot be cut at."""
    try:
        return _cut(list(network.blocks), cut, config, network.weights_nbytes)
    except Exception:  # whatever the modules raise
        if cut == network.cut:
            raise
        return None


def _cut(blocks: list[Block], cut: int, config: RunConfig, weights: int) -> CutOption | None:
    """None where more than one tensor passes from block to block, or one without gradients, or where the sides would share what is trained:
    no cut there."""
    lower = join(blocks[:cut])
    try:
        ties_of({"lower": lower, "head": join(blocks[cut:])}, config.model.name, cut)
    except ConfigError:
        return None
    lower = copy.deepcopy(lower)
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
        except ConfigError:  # fits the configured cut, not this one
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
    """A batch of noise, its activations, and the bytes that autograd keeps. Where noise will not do, of zeros, on which the network was
    tried: numbers of words, for one, are neither broken nor below 0."""
    noise = torch.randn(most_in_batch(config), *config.input, generator=torch_generator(config.run.seed, "check"))
    with contextlib.suppress(Exception):  # whatever the user's modules raise
        return noise, *kept_by(lower, noise)
    zeros = torch.zeros_like(noise)
    try:
        return zeros, *kept_by(lower, zeros)
    except Exception as error:
        raise ConfigError(
            f"model {config.model.name!r} does not run on a batch of {len(zeros)} samples {config.input}: {error!r:.300}"
        ) from error
