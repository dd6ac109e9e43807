"""Decide if a run can be stacked."""

from __future__ import annotations

import warnings

import torch

from sl_common.codec import Identity
from sl_common.config.run_config import RunConfig
from sl_common.copied import copied
from sl_common.network.network import Network
from sl_common.protocol import Split
from sl_common.training.modules import draws_random_numbers
from sl_common.training.segment import Segment
from sl_server.simulation.vectorized.stack import Stack


def reason_against(config: RunConfig, network: Network) -> str | None:
    """Return why the clients of this run cannot compute as one; None if they can."""
    learner, model = config.protocol.learner, f"model.name = {config.model.name!r} cut at {config.model.cut!r}"
    if not isinstance(learner, Split):
        return (
            f"protocol.learner.kind = {learner.kind!r}: only clients that train by the head's gradient alone "
            "are stacked"
        )
    for direction, codec in (("up", config.codec.up), ("down", config.codec.down)):
        if not isinstance(codec, Identity):
            return (
                f"codec.{direction}.kind = {codec.kind!r}: a stacked step encodes nothing, which only identity allows"
            )
    if draws_random_numbers(network.lower):
        return f"{model}: the lower segment draws random numbers (dropout, or code of your own that may)"
    if any(True for _ in network.lower.buffers()):
        return f"{model}: the lower segment has buffers (BatchNorm's statistics)"
    if not any(param.requires_grad for param in network.lower.parameters()):
        return f"{model}: the lower segment has nothing to train"
    return _trial(config, network, model)


def _trial(config: RunConfig, network: Network, model: str) -> str | None:
    """Try one step of two clients on zeros: torch cannot vectorize all of its operations."""
    optimizer = config.client.optimizer
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "There is a performance drop")  # torch would compute one client at a time
            stack = Stack([Segment(copied(network.lower), optimizer) for _ in range(2)], optimizer, config.input)
            passed = stack.forward((0, 1), torch.zeros(2, 2, *config.input))
            stack.learn(passed, {place: torch.zeros_like(passed.z[place]) for place in (0, 1)}, optimizer.lr)
    except Exception as error:  # the modules and torch may raise anything
        return f"{model}: torch.func.vmap cannot run the lower segment: {str(error).partition(chr(10))[0]}"
    return None
