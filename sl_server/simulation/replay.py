"""Replay of a recorded run: a fresh coordinator gets the same events, and its messages are compared with the log.

A bug report is an event log: the same events give the same messages and weights, bit for bit, on any machine of the
same kind.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from sl_common.config.run_config import RunConfig
from sl_common.errors import CutlayerError, Refused, WireError
from sl_common.messages.events import Advanced, Failed, Logged, Restored, Saved, Stopped
from sl_common.messages.facts import Fact
from sl_common.messages.training import Aligned
from sl_common.network.network import Network
from sl_common.training.segment import Tree
from sl_common.wire.eventlog import Entry, LogReader
from sl_server.core.coordinator import Coordinator
from sl_server.core.digests import AdvanceDigests, digest_difference, fields_of
from sl_server.core.outbox import Messages, Turn
from sl_server.storage.eventlog import Recorded, opened_log
from sl_server.storage.spill import DiskSpill


class Departed(CutlayerError):
    """Raised when a replay computes something else than the run did, or its log is damaged.

    The text names the event, and the tensor if there is one.
    """

    def __init__(self, number: int, text: str) -> None:
        """`number`: of the event, from 1."""
        super().__init__(f"event {number}: {text}")
        self.number = number


class Replay:
    """Feeds recorded events to one coordinator, and compares."""

    def __init__(self, coordinator: Coordinator, on_fact: Callable[[Fact], None] = lambda _fact: None) -> None:
        self.coordinator = coordinator
        self._on_fact = on_fact
        self.number = 0  # of the last event, from 1
        self._digests = AdvanceDigests(coordinator)
        self._kept: dict[int, Tree] = {0: copy.deepcopy(coordinator.snapshot())}  # snapshots by number of checkpoint
        self._aligned: dict[tuple[str, int, int], Aligned] = {}  # results of the coordinator's jobs
        self._raised: Exception | None = None

    def take(self, client: str, event: Logged) -> Messages:
        """Apply the next event; return the coordinator's messages. Raises Departed where the run did something else."""
        self.number += 1
        if self._raised is not None and not isinstance(event, Failed):
            raise self._departed(f"the replay failed at the event before ({_describe(self._raised)}), the run did not")
        turn = None
        try:
            turn = self._take(client, event)
        except (Departed, WireError, Refused) as error:
            if isinstance(error, Departed):
                raise
            raise self._departed(f"{_name(client, event)} is refused ({error}), the run took it") from error
        except Exception as error:  # the log must record the same failure as its next event
            self._raised = error
        if turn is None:
            return []
        self._finish_turn(turn)
        return turn.messages

    def _take(self, client: str, event: Logged) -> Turn | None:
        match event:
            case Advanced():
                return self._advance(event)
            case Failed():
                self._compare_failure(event)
            case Stopped(reason=reason):
                self.coordinator.stop(reason)
            case Restored(number=number, now=now):
                if number not in self._kept:
                    raise self._departed(f"back to checkpoint {number}, which was made before the log began")
                self.coordinator.restore(copy.deepcopy(self._kept[number]), now)
            case _:
                if isinstance(event, Saved):
                    self._kept = {event.number: copy.deepcopy(self.coordinator.snapshot())}
                if isinstance(event, Aligned):
                    self._compare_aligned(client, event)
                self.coordinator.handle(client, event)
        return None

    def _advance(self, event: Advanced) -> Turn:
        turn = self.coordinator.advance()
        if not turn.worked:
            raise self._departed("the replay waits for an event, the run went on")
        found = self._digests.of(turn)
        for number, (one, other) in enumerate(zip(event.said, found.said, strict=False), start=1):
            what = f"message {number} of {len(event.said)}, {one.kind} to {one.client}"
            if (one.client, one.kind) != (other.client, other.kind):
                raise self._departed(f"{what}, is {other.kind} to {other.client} in the replay")
            if difference := digest_difference(one.fields, other.fields):
                raise self._departed(f"{what}: {difference}")
        if len(event.said) != len(found.said):
            raise self._departed(f"{len(found.said)} messages, the log has {len(event.said)}")
        if difference := digest_difference(event.weights, found.weights):
            raise self._departed(f"weights after wave {self.coordinator.completed_waves}: {difference}")
        return turn

    def _compare_failure(self, event: Failed) -> None:
        error, self._raised = self._raised, None
        if error is None:
            raise self._departed(f"the run failed at the event before ({event.error}), the replay did not")
        if _describe(error) != event.error:
            raise self._departed(f"the replay failed with {_describe(error)}, the run with {event.error}")

    def _compare_aligned(self, client: str, event: Aligned) -> None:
        found = self._aligned.pop((client, event.round, event.wave), None)
        if found is not None and (difference := digest_difference(dict(fields_of(event)), dict(fields_of(found)))):
            raise self._departed(f"aligned for {client}: {difference}")

    def _finish_turn(self, turn: Turn) -> None:
        """Do what an engine does after sending messages: run jobs (the log has their results), pass on facts."""
        self.coordinator.run_deferred_step()
        for job in turn.jobs:
            try:
                result = job.run()
            except CutlayerError:  # the log holds the consequence for the client
                continue
            self._aligned[job.client, result.round, result.wave] = result
        for fact in turn.facts():
            self._on_fact(fact)

    def finish(self) -> None:
        """End a log. Raises Departed if the replay failed where the run did not."""
        if self._raised is not None:
            raise self._departed(
                f"the replay failed ({_describe(self._raised)}), the log does not say that the run did"
            )

    def _departed(self, text: str) -> Departed:
        return Departed(self.number, text)


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _name(client: str, event: Logged) -> str:
    kind = type(event).__name__.lower()
    return f"{kind} of {client}" if client else kind


def replay_events(coordinator: Coordinator, events: Iterable[tuple[str, Logged]]) -> Messages:
    """Return all messages of a coordinator to these events. Raises Departed."""
    replay = Replay(coordinator)
    said = [one for client, event in events for one in replay.take(client, event)]
    replay.finish()
    return said


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Replayed:
    """A log that was replayed to its end, or to the event that was asked for."""

    recorded: Recorded
    coordinator: Coordinator
    events: int
    cut_short: int  # bytes of an incomplete last record


Watch = Callable[[Entry, Messages, LogReader], None]


def replay_log(
    path: Path,
    *,
    device: str = "cpu",
    until: int | None = None,
    watch: Watch | None = None,
    on_fact: Callable[[Fact], None] = lambda _fact: None,
) -> Replayed:
    """Replay the log in a file, holding one event in memory at a time. `watch` gets every event and the messages to
    it.

    Raises ConfigError if it is no log of this version, Departed if it is damaged or the replay differs.
    """
    with opened_log(path) as (recorded, reader):
        config = RunConfig.from_json(recorded.config)
        torch.set_num_threads(config.run.threads)
        coordinator = Coordinator(config, Network.build(config), device=device, spill=DiskSpill(), run=recorded.run)
        replay = Replay(coordinator, on_fact)
        try:
            for entry in itertools.islice(reader, until):
                said = replay.take(entry.client, entry.event)
                if watch is not None:
                    watch(entry, said, reader)
        except WireError as error:  # from the log; errors of the coordinator are Departed already
            raise Departed(replay.number + 1, str(error)) from error
        stopped = until is not None and replay.number == until
        if not stopped:
            replay.finish()
        cut = 0 if stopped else reader.cut_short
        return Replayed(recorded=recorded, coordinator=coordinator, events=replay.number, cut_short=cut)
