"""What becomes of weights: `after_wave(record)` and `after_round(record)` return the parts that all shall go on with."""

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
    """What the clients that finished a wave (or all waves of a round) brought, in order of their waves, then by shard."""

    at: At
    samples: Mapping[int, int]  # training samples of each client, |Dᵢ|
    weights: Mapping[str, Mapping[int, StateDict]]  # part -> client -> its weights


class Keep(Value):
    """Nothing is exchanged: every client keeps its own lower segment."""

    kind: Literal["keep"] = "keep"

    def needs(self, at: At) -> tuple[str, ...]:  # noqa: ARG002
        """The parts whose weights it will ask for in this round."""
        return ()

    def after_wave(self, record: Record) -> Merged:  # noqa: ARG002
        """Nothing."""
        return KEEP

    def after_round(self, record: Record) -> Merged:  # noqa: ARG002
        """Nothing."""
        return KEEP


class Handoff(Value):
    """The next wave goes on with the weights of the one before, handed over through the server (Gupta & Raskar 2018)."""

    kind: Literal["handoff"] = "handoff"
    parts: tuple[str, ...] = ("lower",)

    def needs(self, at: At) -> tuple[str, ...]:  # noqa: ARG002
        """The parts whose weights it will ask for in this round."""
        return self.parts

    def after_wave(self, record: Record) -> Merged:
        """The wave's last client's weights; a wave whose client left changes nothing."""
        weights = {part: list(record.weights.get(part, {}).values()) for part in self.parts}
        return {part: states[-1] for part, states in weights.items() if states}

    def after_round(self, record: Record) -> Merged:  # noqa: ARG002
        """Nothing more."""
        return KEEP


class Average(Value):
    """Federated averaging by |Dᵢ| (McMahan et al. 2017), every so many rounds; parameters and buffers.

    SplitFed's authors average unweighted and evaluate the pre-round client model. `weighting = "unweighted"` averages as they do;
    evaluation here is of the averaged model, after the round.
    """

    kind: Literal["average"] = "average"
    parts: tuple[str, ...] = ("lower",)
    every: PositiveInt = 1  # rounds
    weighting: Literal["samples", "unweighted"] = "samples"

    def needs(self, at: At) -> tuple[str, ...]:
        """The parts whose weights it will ask for in this round."""
        return self.parts if (at.round + 1) % self.every == 0 else ()

    def after_wave(self, record: Record) -> Merged:  # noqa: ARG002
        """Nothing yet."""
        return KEEP

    def after_round(self, record: Record) -> Merged:
        """The mean over the clients that finished, summed by shard; nothing if none did."""
        merged = {}
        for part in self.needs(record.at):
            states = dict(sorted(record.weights.get(part, {}).items()))
            if states:
                counts = [record.samples[client] if self.weighting == "samples" else 1 for client in states]
                merged[part] = weighted_mean(list(states.values()), counts)
        return merged


Merge = Annotated[Keep | Handoff | Average, Field(discriminator="kind")]
