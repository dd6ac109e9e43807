"""The choice of the queries that are computed together. Pure: waiting queries and the time in, the choice out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from sl_common.protocol import WaitUntil


class QueuedQuery(Protocol):
    """A query without an answer."""

    @property
    def head(self) -> int | None:
        """Number of the head that answers it."""
        ...

    @property
    def samples(self) -> int:
        """Number of samples in it, at least 1."""
        ...

    @property
    def arrived(self) -> float:
        """Time of arrival, in seconds of the caller's clock."""
        ...


W = TypeVar("W", bound=QueuedQuery)


@dataclass(frozen=True, kw_only=True, slots=True)
class MicroBatching:
    """Computes up to `max_samples` together, or one larger query; none waits for others longer than `max_wait_s`."""

    max_samples: int = 256
    max_wait_s: float = 0.002

    def choose(self, waiting: Sequence[W], *, others: bool, now: float) -> list[W] | WaitUntil:
        """Return the queries to compute now, or until when to wait. `waiting`: at least one, in order of arrival.

        Only queries for the head of the oldest one are chosen. `others`: a client is connected that could send a query
        for this head; otherwise there is nothing to wait for.
        """
        first, samples = waiting[0], 0
        chosen: list[W] = []
        for one in waiting:
            if one.head != first.head:
                continue
            if chosen and samples + one.samples > self.max_samples:
                return chosen
            chosen.append(one)
            samples += one.samples
        late = first.arrived + self.max_wait_s
        if not others or samples >= self.max_samples or now >= late:
            return chosen
        return WaitUntil(late)
