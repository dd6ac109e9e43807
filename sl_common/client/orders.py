"""Checks of server messages against the run and the client's requests, before the client acts on them. Pure.

Law: a message that no honest server sends ends the client with a WireError; the client neither trains on it nor
displays it.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Self

import torch

from sl_common.bounded import MAX_COUNT
from sl_common.config.run_config import RunConfig
from sl_common.config.sections import MAX_CLIENTS
from sl_common.errors import WireError
from sl_common.messages.training import Aligned, Begin, Gradient, Ready, Smashed, Welcome
from sl_common.names import MAX_NAME, is_name
from sl_common.tensors import all_finite


def check_welcome(message: object) -> Welcome:
    """Return the first message of a run as a Welcome.

    Raises WireError if it is another one, or has impossible values.
    """
    if not isinstance(message, Welcome):
        raise WireError(f"the server's first word is {type(message).__name__}, not Welcome")
    if not message.client or not is_name(message.client) or not is_name(message.run):
        raise WireError(
            f"welcome calls the client {message.client[:80]!r} and the run {message.run[:80]!r}: names have "
            f"1 to {MAX_NAME} printable characters without '/'"
        )
    if not 0 <= message.shard < message.shards <= MAX_CLIENTS:
        raise WireError(f"welcome gives shard {message.shard + 1} of {message.shards}, of at most {MAX_CLIENTS}")
    return message


def check_begin(message: object, config: RunConfig, ready: Ready, parts: Collection[str]) -> Begin:
    """Return the first message of a wave as a Begin, for a client that holds these parts.

    Raises WireError if it is another message, or contradicts the run.
    """
    if not isinstance(message, Begin):
        raise WireError(f"the server says {type(message).__name__} where a wave should begin")
    _check_place(message, config)
    for what, named in (("carries weights of", message.weights), ("wants weights of", message.upload)):
        if unknown := sorted(set(named) - set(parts)):
            raise WireError(f"begin {what} {unknown[:3]}, this client holds {tuple(parts)}")
    if len(set(message.upload)) < len(message.upload):
        raise WireError(f"begin wants the weights of a part twice: {message.upload[:8]}")
    steps = config.client.wave.batches(ready.batches)
    if message.steps > steps:
        raise WireError(f"begin of {message.steps} batches, this client has {steps} in a wave")
    if not message.slice < message.slices <= MAX_CLIENTS:
        raise WireError(
            f"begin of an evaluation of slice {message.slice} of {message.slices}, of at most {MAX_CLIENTS}"
        )
    if message.samples > config.eval.samples:
        raise WireError(f"begin of an evaluation of {message.samples} samples, eval.samples = {config.eval.samples}")
    return message


def _check_place(begin: Begin, config: RunConfig) -> None:
    rounds = config.run.rounds
    if begin.rounds != rounds or begin.round >= rounds:
        raise WireError(f"begin of round {begin.round + 1} of {begin.rounds}, this run has {rounds}")
    for name in ("wave", "wave_size", "first", "checkpoint", "restore"):
        if getattr(begin, name) > MAX_COUNT:
            raise WireError(f"begin with {name} = {getattr(begin, name)}, at most {MAX_COUNT} is possible")
    if begin.wave_size < 1 or (config.sharded and begin.wave_size > config.shards):
        raise WireError(f"begin of a wave of {begin.wave_size} clients, this run has {config.shards} shards")
    # Tolerance: the server computes its cosine on another machine
    most = config.client.lr(begin.round, begin.rounds) * (1 + 1e-6)
    if not 0 <= begin.lr <= most:  # False for NaN, too
        raise WireError(f"begin with a learning rate of {begin.lr}, 0 to {most:g} are possible")


@dataclass(frozen=True, kw_only=True, slots=True)
class Expected:
    """Properties of a sent batch that its reply must match."""

    needs_grad: bool
    correct: int  # most correct answers that the reply may report
    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, batch: Smashed) -> Self:
        """Return the properties of a batch that is sent."""
        evaluates = not (batch.train or batch.needs_grad)
        correct = len(batch.y) if evaluates else 0
        return cls(needs_grad=batch.needs_grad, correct=correct, shape=tuple(batch.z.shape), dtype=batch.z.dtype)


def check_reply(reply: Gradient, batch: Expected) -> None:
    """Raise WireError unless the reply matches the batch."""
    if not 0 <= reply.loss < math.inf:
        raise WireError(f"reply to batch {reply.step} with a loss of {reply.loss}")
    if reply.correct > batch.correct:
        raise WireError(
            f"reply to batch {reply.step} with {reply.correct} correct answers, at most {batch.correct} are possible"
        )
    if (reply.dz is not None) != batch.needs_grad:
        raise WireError(f"reply to batch {reply.step} {'without' if batch.needs_grad else 'with'} a gradient")
    if reply.dz is None:
        return
    if (tuple(reply.dz.shape), reply.dz.dtype) != (batch.shape, batch.dtype):
        raise WireError(
            f"reply to batch {reply.step}: its gradient is {reply.dz.dtype} {tuple(reply.dz.shape)}, "
            f"the activations are {batch.dtype} {batch.shape}"
        )
    if not all_finite(reply.dz):
        raise WireError(f"reply to batch {reply.step}: its gradient holds NaN or Inf")


def check_aligned(aligned: Aligned, wave: tuple[int, int] | None) -> None:
    """Raise WireError unless an alignment is of this wave (round, wave) and its errors are finite and not negative."""
    if (aligned.round, aligned.wave) != wave:
        now = "none is under way" if wave is None else f"now is round {wave[0] + 1}, wave {wave[1] + 1}"
        raise WireError(f"an alignment is of round {aligned.round + 1}, wave {aligned.wave + 1}; {now}")
    for name, error in (("before", aligned.before), ("after", aligned.after)):
        if not 0 <= error < math.inf:
            raise WireError(f"an alignment says that its squared error {name} was {error}")
