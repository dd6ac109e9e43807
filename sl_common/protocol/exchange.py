"""The vocabulary of a client's training loop: what it may yield, and what it returns."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Literal

from sl_common.messages.training import Alive, Smashed
from sl_common.seeds import Draw


@dataclass(frozen=True, slots=True)
class Await:
    """Wait for the reply to the Smashed of this step."""

    ticket: int


@dataclass(frozen=True, slots=True)
class AwaitAligned:
    """Wait for the auxiliary network that the server aligns in this wave."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WaveTally:
    """Result of one wave of a client."""

    steps: int = 0
    samples: int = 0
    loss_sum: float = 0.0  # if the client computed the loss itself


Exchanged = Literal["gradient", "activation", "nothing"]  # crosses the cut: both ways, up alone, or not at all
Exchange = Generator[Smashed | Await | AwaitAligned | Alive, Any, WaveTally]


@dataclass(frozen=True, kw_only=True, slots=True)
class Draws:
    """Names of the draws of a client's forward passes: (run.seed, segment, round, shard, step)."""

    seed: int
    round: int
    shard: int

    def of(self, part: str, step: int) -> Draw:
        """Return the draw of one pass of one part."""
        return (self.seed, part, self.round, self.shard, step)
