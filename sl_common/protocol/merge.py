"""Merges combine the clients' weights.

`after_wave(record)` and `after_round(record)` return the parts with which all clients continue.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from sl_common.protocol.at import At
from sl_common.tensors import StateDict, weighted_mean
from sl_common.value import Value

Merged = Mapping[str, StateDict]
KEEP: Merged = {}


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """Weights of the clients that finished a wave (or all waves of a round), in order of their waves, then by shard."""

    at: At
    samples: Mapping[int, int]  # training samples of each client, |Dᵢ|
    weights: Mapping[str, Mapping[int, StateDict]]  # part -> client -> its weights


class Keep(Value):
    """Nothing is exchanged: every client keeps its own lower segment."""

    kind: Literal["keep"] = Field("keep", description="No exchange: every client keeps its own lower segment.")

    def needs(self, at: At) -> tuple[str, ...]:  # noqa: ARG002
        """Return the parts that it needs in this round."""
        return ()

    def after_wave(self, record: Record) -> Merged:  # noqa: ARG002
        """Return nothing."""
        return KEEP

    def after_round(self, record: Record) -> Merged:  # noqa: ARG002
        """Return nothing."""
        return KEEP


class Handoff(Value):
    """The next wave continues with the weights of the one before, sent through the server (Gupta & Raskar 2018)."""

    kind: Literal["handoff"] = Field(
        "handoff", description="The next wave begins with the weights of the wave before it."
    )
    parts: tuple[str, ...] = Field(("lower",), description="Parts whose weights are exchanged.")

    def needs(self, at: At) -> tuple[str, ...]:  # noqa: ARG002
        """Return the parts that it needs in this round."""
        return self.parts

    def after_wave(self, record: Record) -> Merged:
        """Return the weights of the wave's last client; a wave that its client left changes nothing."""
        weights = {part: list(record.weights.get(part, {}).values()) for part in self.parts}
        return {part: states[-1] for part, states in weights.items() if states}

    def after_round(self, record: Record) -> Merged:  # noqa: ARG002
        """Return nothing more."""
        return KEEP


class Average(Value):
    """Federated averaging of parameters and buffers by |Dᵢ| (McMahan et al. 2017), every `every` rounds.

    SplitFed's authors average unweighted and evaluate the client model of before the round. `weighting = "unweighted"`
    averages as they do; evaluation here is of the averaged model, after the round.
    """

    kind: Literal["average"] = Field("average", description="Federated averaging.")
    parts: tuple[str, ...] = Field(("lower",), description="Parts whose weights are exchanged.")
    every: PositiveInt = Field(1, description="Rounds between two averages.")
    weighting: Literal["samples", "unweighted"] = Field(
        "samples", description="Weight of a client: its number of samples, or the same for all."
    )

    def needs(self, at: At) -> tuple[str, ...]:
        """Return the parts that it needs in this round."""
        return self.parts if (at.round + 1) % self.every == 0 else ()

    def after_wave(self, record: Record) -> Merged:  # noqa: ARG002
        """Return nothing yet."""
        return KEEP

    def after_round(self, record: Record) -> Merged:
        """Return the mean over the clients that finished, summed by shard; nothing if none did."""
        merged = {}
        for part in self.needs(record.at):
            states = dict(sorted(record.weights.get(part, {}).items()))
            if states:
                counts = [record.samples[client] if self.weighting == "samples" else 1 for client in states]
                merged[part] = weighted_mean(list(states.values()), counts)
        return merged


Merge = Annotated[Keep | Handoff | Average, Field(discriminator="kind")]
