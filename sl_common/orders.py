"""What a server may ask of a client, by the run that both know: checked before anything is done for it. Pure."""

from __future__ import annotations

from collections.abc import Collection

import torch

from sl_common.config import MAX_CLIENTS, RunConfig
from sl_common.errors import WireError
from sl_common.messages import Begin, Gradient, Ready, Welcome
from sl_common.names import MAX_NAME, is_name

Cut = tuple[torch.Size, torch.dtype]  # of a batch's activations
MAX_NUMBER = 1 << 53  # of a batch, a sample or a checkpoint


def check_welcome(message: object) -> Welcome:
    """The first word on a client's stream. Raises WireError if it is none."""
    if not isinstance(message, Welcome):
        raise WireError(f"the server's first word is {type(message).__name__}, not Welcome")
    if not message.client or not is_name(message.client) or not is_name(message.run):
        raise WireError(
            f"welcome calls the client {message.client[:80]!r} and the run {message.run[:80]!r}: names have 1 to {MAX_NAME} "
            "printable characters without '/'"
        )
    if not 0 <= message.shard < message.shards <= MAX_CLIENTS:
        raise WireError(f"welcome gives shard {message.shard} of {message.shards}, of at most {MAX_CLIENTS}")
    return message


def check_begin(message: object, config: RunConfig, ready: Ready, parts: Collection[str]) -> Begin:
    """A wave's first word, for a client that holds these parts. Raises WireError if it is none, or contradicts the run."""
    if not isinstance(message, Begin):
        raise WireError(f"the server says {type(message).__name__} where a wave should begin")
    _check_place(message, config)
    for what, named in (("carries weights of", message.weights), ("wants weights of", message.upload)):
        if unknown := sorted(set(named) - set(parts)):
            raise WireError(f"begin {what} {unknown[:3]}, this client holds {tuple(parts)}")
    if len(set(message.upload)) < len(message.upload):
        raise WireError(f"begin wants the weights of a part twice: {message.upload[:8]}")
    if message.evaluate:
        if not 0 <= message.slice < message.slices <= MAX_CLIENTS:
            raise WireError(f"begin says slice {message.slice} of {message.slices}, of at most {MAX_CLIENTS}")
        return message
    allowed = config.client.wave.batches(ready.batches)
    if message.steps > allowed or message.first > MAX_NUMBER:
        raise WireError(
            f"begin wants {message.steps} batches from number {message.first}, this run has at most {allowed} in a wave, "
            f"up to number {MAX_NUMBER}"
        )
    return message


def _check_place(begin: Begin, config: RunConfig) -> None:
    rounds = config.run.rounds
    if not begin.round < begin.rounds or begin.rounds != rounds:
        raise WireError(f"begin says round {begin.round} of {begin.rounds}, this run has {rounds} from 0")
    if begin.wave_size < 1 or max(begin.checkpoint, begin.restore, begin.samples) > MAX_NUMBER:
        raise WireError(
            f"begin says {begin.wave_size} clients in the wave, checkpoints {begin.checkpoint} and {begin.restore}, "
            f"{begin.samples} samples: at least 1 client, and numbers up to {MAX_NUMBER}"
        )


def check_gradient(reply: Gradient, cut: Cut) -> None:
    """Raise WireError unless a reply that the learner waits for brings d loss/dz, shaped as the batch's activations."""
    if reply.dz is None:
        raise WireError(f"the reply to batch {reply.step} brings no gradient, which the batch asked for")
    if (reply.dz.shape, reply.dz.dtype) != cut:
        raise WireError(
            f"the gradient of batch {reply.step} is {reply.dz.dtype} {tuple(reply.dz.shape)}, "
            f"its activations are {cut[1]} {tuple(cut[0])}"
        )
