"""Which waiting queries go through the head together. Pure: what waits and how late it is come in, the choice goes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from sl_common.protocol import WaitUntil


class QueuedQuery(Protocol):
    """A query that was not answered yet."""

    @property
    def head(self) -> int | None:
        """Which head it is for."""
        ...

    @property
    def samples(self) -> int:
        """At least 1."""
        ...

    @property
    def arrived(self) -> float:
        """When, in seconds of the caller's clock."""
        ...


W = TypeVar("W", bound=QueuedQuery)


@dataclass(frozen=True, kw_only=True, slots=True)
class MicroBatching:
    """`max_samples` go through the head at once (or one query, if it has more); for that none waits longer than `max_wait_s`."""

    max_samples: int = 256
    max_wait_s: float = 0.002

    def choose(self, waiting: Sequence[W], *, others: bool, now: float) -> list[W] | WaitUntil:
        """What to compute now, out of queries in the order of their arrival, at least one.

        The oldest one's head decides. `others`: somebody is connected who could ask it and has not; without, nobody is waited for.
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
