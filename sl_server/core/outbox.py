"""The one value that comes out of the coordinator's work, and the place where it is gathered. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from sl_common.messages.facts import Fact, RunEnded
from sl_common.messages.training import ToClient
from sl_server.core.alignments import Job

Messages = list[tuple[str, ToClient]]  # a client's name, and a message for it; in order
LazyFact = Fact | partial[Fact]  # a fact, or a way to compute one later


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """Everything that one call of `Coordinator.advance` gives to its driver."""

    worked: bool  # False: nothing was done, and nothing is to be sent before the next event
    messages: Messages  # to be sent now
    expelled: list[tuple[str, str]]  # clients that this work refused, and why; they have left the run already
    jobs: list[Job]  # to be run, in any thread; their results come back as events
    reports: list[LazyFact]  # since the turn before; read them by `facts`
    wake_at: float | None  # a Tick is wanted at this time, in seconds since the run began
    waiting: bool  # batches are here that were not served
    merged: bool  # weights that several clients share may have changed since the turn before
    ended: RunEnded | None  # the run is over; the farewells are in this turn or in one before

    def facts(self) -> list[Fact]:
        """Return what happened since the turn before. Computes checksums of batches: call it once, after the messages were sent."""
        return [report() if isinstance(report, partial) else report for report in self.reports]


class Outbox:
    """Messages, facts and refusals of one run that no turn has carried out yet."""

    def __init__(self) -> None:
        self._messages: Messages = []
        self._reports: list[LazyFact] = []
        self._expelled: list[tuple[str, str]] = []
        self._merged = False

    @property
    def has_messages(self) -> bool:
        """True if something is to be sent."""
        return bool(self._messages)

    def say(self, client: str, message: ToClient) -> None:
        """Send a message to a client with the next turn."""
        self._messages.append((client, message))

    def report(self, fact: LazyFact) -> None:
        """LazyFact a fact with the next turn."""
        self._reports.append(fact)

    def expel(self, client: str, why: str) -> None:
        """Have the driver refuse a client after the next turn."""
        self._expelled.append((client, why))

    def note_merge(self) -> None:
        """Record that weights were merged."""
        self._merged = True

    def drop(self, client: str) -> None:
        """Drop the messages to a client that is gone."""
        self._messages = [(name, message) for name, message in self._messages if name != client]

    def clear(self) -> None:
        """Drop what is of a time that the run went back before; facts stay, they were true."""
        self._messages, self._expelled = [], []

    def turn(
        self, *, worked: bool, jobs: list[Job], wake_at: float | None, waiting: bool, ended: RunEnded | None
    ) -> Turn:
        """Return everything that has gathered, and begin anew."""
        turn = Turn(
            worked=worked or bool(self._messages),
            messages=self._messages,
            expelled=self._expelled,
            jobs=jobs,
            reports=self._reports,
            wake_at=wake_at,
            waiting=waiting,
            merged=self._merged,
            ended=ended,
        )
        self._messages, self._reports, self._expelled, self._merged = [], [], [], False
        return turn
