"""Which waiting batches the server joins into one cohort: `cohort(waiting, training, at)`.

`waiting` names the clients of `training` with a batch here, in order of arrival; `training` maps every client that is still in the wave to the
number of its batches that were served. `joint`: its cohorts have more than one client; `timed`: it looks at the time, and so wants
Ticks. The answer is a cohort (empty: not yet), the time at which to ask again, or a cohort and those
whom the wave goes on without.
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
    """Nothing yet; ask again at this time (seconds since the run began)."""

    now: float


@dataclass(frozen=True, slots=True)
class Without:
    """This cohort now, and the wave goes on without these: they are too late and take part again in the next one."""

    cohort: list[int]
    late: list[int]


Decision = list[int] | WaitUntil | Without


class Each(Value):
    """Whoever comes: one batch at a time in order of arrival. On a shared head the result depends on that order."""

    kind: Literal["each"] = "each"
    joint: ClassVar[bool] = False
    timed: ClassVar[bool] = False

    def cohort(self, waiting: Collection[int], training: Mapping[int, int], at: At) -> Decision:  # noqa: ARG002
        """The first that came."""
        return [next(iter(waiting))] if waiting else []


class All(Value):
    """Lock-step: one batch of every client that is still training."""

    kind: Literal["all"] = "all"
    joint: ClassVar[bool] = True
    timed: ClassVar[bool] = False

    def cohort(self, waiting: Collection[int], training: Mapping[int, int], at: At) -> Decision:  # noqa: ARG002
        """Everybody by shard, once everybody is here."""
        return sorted(waiting) if training and len(waiting) >= len(training) else []


class InTurn(Value):
    """One client at a time in an order that does not depend on arrival.

    `unit = "epoch"` serves a client's whole wave before the next one's, `"batch"` goes round after each batch.
    `order = "shuffled"` draws a new order each round, `"fixed"` goes by shard.
    """

    kind: Literal["in_turn"] = "in_turn"
    joint: ClassVar[bool] = False
    timed: ClassVar[bool] = False
    order: Literal["fixed", "shuffled"] = "shuffled"
    unit: Literal["batch", "epoch"] = "epoch"

    def cohort(self, waiting: Collection[int], training: Mapping[int, int], at: At) -> Decision:
        """The client whose turn it is, if its batch is here."""
        if not training:
            return []
        place = {client: number for number, client in enumerate(self._order(sorted(training), at))}
        turn = min(training, key=lambda c: (training[c] if self.unit == "batch" else 0, place[c]))
        return [turn] if turn in waiting else []

    def _order(self, clients: list[int], at: At) -> list[int]:
        """By a key drawn for each client alone, so that one that leaves does not move the others."""
        if self.order == "fixed":
            return clients
        return sorted(clients, key=lambda c: (_key(at.seed, at.round, at.wave, c), c))


class Quorum(Value):
    """Lock-step without the slowest: everybody, or after `timeout_s` those who are here, if they are at least `fraction` of all.

    The clock starts anew with each cohort. What is trained depends on who is fast.
    """

    kind: Literal["quorum"] = "quorum"
    joint: ClassVar[bool] = True
    timed: ClassVar[bool] = True
    fraction: Annotated[float, Field(gt=0, le=1)] = 0.5
    timeout_s: Annotated[float, Field(gt=0)] = 10.0

    def cohort(self, waiting: Collection[int], training: Mapping[int, int], at: At) -> Decision:
        """Those who are here by shard, once they are all or enough."""
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
    """Asked for again with every batch, drawn once."""
    return float(numpy_generator(seed, "turn", round, wave, client).random())


Barrier = Annotated[Each | All | InTurn | Quorum, Field(discriminator="kind")]
