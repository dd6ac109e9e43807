"""Barriers choose the waiting batches that the server joins into one cohort: `cohort(waiting, training, at)`.

`waiting` names the clients of `training` with a batch here, in order of arrival; `training` maps every client that is
still in the wave to the number of its batches that were served. `joint`: cohorts have more than one client; `timed`:
the barrier looks at the time, and so needs Ticks. The answer is a cohort (empty: not yet), the time at which to ask
again, or a cohort together with the clients that leave the wave.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from sl_common.protocol.at import At
from sl_common.seeds import numpy_generator
from sl_common.value import Value


@dataclass(frozen=True, slots=True)
class WaitUntil:
    """No cohort yet; ask again at this time (seconds since the run began)."""

    now: float


@dataclass(frozen=True, slots=True)
class Without:
    """A cohort now; the wave goes on without the late clients, which take part again in the next one."""

    cohort: list[int]
    late: list[int]


Decision = list[int] | WaitUntil | Without


class Each(Value):
    """One batch at a time, in order of arrival.

    On a shared head the result depends on that order.
    """

    kind: Literal["each"] = Field("each", description="One batch at a time, in order of arrival.")
    joint: ClassVar[bool] = False
    timed: ClassVar[bool] = False

    def cohort(self, waiting: Collection[int], training: Mapping[int, int], at: At) -> Decision:  # noqa: ARG002
        """Return the client that came first."""
        return [next(iter(waiting))] if waiting else []


class All(Value):
    """Lock-step: one batch of every client that is still training."""

    kind: Literal["all"] = Field("all", description="Lock-step: one batch of every client that is still training.")
    joint: ClassVar[bool] = True
    timed: ClassVar[bool] = False

    def cohort(self, waiting: Collection[int], training: Mapping[int, int], at: At) -> Decision:  # noqa: ARG002
        """Return all clients by shard, once all are here."""
        return sorted(waiting) if training and len(waiting) >= len(training) else []


class InTurn(Value):
    """One client at a time in an order that does not depend on arrival.

    `unit = "epoch"` serves a client's whole wave before the next one's, `"batch"` goes round after each batch.
    `order = "shuffled"` draws a new order each round, `"fixed"` goes by shard.
    """

    kind: Literal["in_turn"] = Field(
        "in_turn", description="One client at a time, in an order that does not depend on arrival."
    )
    joint: ClassVar[bool] = False
    timed: ClassVar[bool] = False
    order: Literal["fixed", "shuffled"] = Field(
        "shuffled", description="Order of the clients: by shard, or drawn anew each round."
    )
    unit: Literal["batch", "epoch"] = Field(
        "epoch", description="Length of a turn: one batch, or the client's whole wave."
    )

    def cohort(self, waiting: Collection[int], training: Mapping[int, int], at: At) -> Decision:
        """Return the client that is next in turn, if its batch is here."""
        if not training:
            return []
        place = {client: number for number, client in enumerate(self._order(sorted(training), at))}
        turn = min(training, key=lambda c: (training[c] if self.unit == "batch" else 0, place[c]))
        return [turn] if turn in waiting else []

    def _order(self, clients: list[int], at: At) -> list[int]:
        """Order clients by a key drawn for each alone, so that one that leaves does not move the others."""
        if self.order == "fixed":
            return clients
        return sorted(clients, key=lambda c: (_key(at.seed, at.round, at.wave, c), c))


class Quorum(Value):
    """Lock-step without the slowest clients: all, or after `timeout_s` those that are here.

    These must be at least `fraction` of all. The clock starts anew with each cohort. The result depends on the speed of
    the clients.
    """

    kind: Literal["quorum"] = Field(
        "quorum", description="Lock-step, but after a time-out without the slowest clients."
    )
    joint: ClassVar[bool] = True
    timed: ClassVar[bool] = True
    fraction: float = Field(
        0.5, gt=0, le=1, description="Least fraction of the clients with which the step is taken after the time-out."
    )
    timeout_s: float = Field(10.0, gt=0, description="Seconds to wait for all clients, from the step before.")

    def cohort(self, waiting: Collection[int], training: Mapping[int, int], at: At) -> Decision:
        """Return the clients that are here by shard, once they are all or enough."""
        if not training or not waiting:
            return []
        if len(waiting) >= len(training):
            return sorted(waiting)
        if at.now < at.since + self.timeout_s:
            return WaitUntil(at.since + self.timeout_s)
        if len(waiting) < math.ceil(self.fraction * len(training)):
            return []
        return Without(sorted(waiting), sorted(training.keys() - set(waiting)))


@lru_cache(maxsize=1 << 16)
def _key(seed: int, round: int, wave: int, client: int) -> float:
    """Return a client's key; cached, since it is needed again with every batch."""
    return float(numpy_generator(seed, "turn", round, wave, client).random())


Barrier = Annotated[Each | All | InTurn | Quorum, Field(discriminator="kind")]
