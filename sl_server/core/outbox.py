"""The one value that comes out of the coordinator, and the place where its contents are gathered. Pure."""

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
    """The result of one call of `Coordinator.advance`."""

    worked: bool  # False: nothing to do or to send before the next event
    messages: Messages  # to send now
    expelled: list[tuple[str, str]]  # clients to refuse, and why; they have left the run already
    jobs: list[Job]  # to run, in any thread; their results come back as events
    reports: list[LazyFact]  # since the last turn; read them with `facts`
    wake_at: float | None  # a Tick is wanted at this time, in seconds since the run began
    waiting: bool  # batches wait for a cohort
    merged: bool  # shared weights may have changed since the last turn
    ended: RunEnded | None  # the run is over; the Byes are in this turn or an earlier one

    def facts(self) -> list[Fact]:
        """Return what happened since the last turn.

        Computes checksums of batches: call it once, after sending the messages.
        """
        return [report() if isinstance(report, partial) else report for report in self.reports]


class Outbox:
    """Messages, facts and refusals of one run that were not in a turn yet."""

    def __init__(self) -> None:
        self._messages: Messages = []
        self._reports: list[LazyFact] = []
        self._expelled: list[tuple[str, str]] = []
        self._merged = False

    @property
    def has_messages(self) -> bool:
        """True if a message is to be sent."""
        return bool(self._messages)

    def say(self, client: str, message: ToClient) -> None:
        """Send a message to a client with the next turn."""
        self._messages.append((client, message))

    def report(self, fact: LazyFact) -> None:
        """Put a fact into the next turn."""
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
        """Drop messages and refusals: the run went back. Facts stay, as they did happen."""
        self._messages, self._expelled = [], []

    def turn(
        self, *, worked: bool, jobs: list[Job], wake_at: float | None, waiting: bool, ended: RunEnded | None
    ) -> Turn:
        """Return everything gathered since the last turn, and forget it."""
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
