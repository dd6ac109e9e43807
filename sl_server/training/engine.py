"""The loop that trains: a thread that alternates the events of the inbox with the coordinator's work.

Law: streams only enqueue. Sessions, coordinator, torch and codecs belong to this thread; there is no lock. A long
silent stretch of work never blocks a leave, a tick or a stop for longer than one cohort.
"""

from __future__ import annotations

import secrets
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial

import torch

from sl_common.errors import CutlayerError, Refused, WireError
from sl_common.messages.facts import AuxAligned, Fact
from sl_common.messages.training import Aligned
from sl_common.pauses import PauseClock
from sl_common.training.segment import Tree
from sl_server.core.alignments import Job
from sl_server.core.coordinator import Coordinator
from sl_server.core.outbox import Turn
from sl_server.core.sessions import Sessions
from sl_server.storage.eventlog import EventLog
from sl_server.telemetry.health import OVER, Health
from sl_server.telemetry.ledger import Ledger
from sl_server.telemetry.metrics import Metrics
from sl_server.training.durability import Archive, Durability
from sl_server.training.gauges import watch_load
from sl_server.training.links import Links
from sl_server.training.meter import Meter
from sl_server.training.workers import Workers, run_timed
from sl_server.transport.inbox import Inbox
from sl_server.transport.refusals import Refusals
from sl_server.transport.streams import Stream

LINGER_S = 10.0  # after the run, for clients that have not taken their Bye yet
HURRY_S = 2.0  # the same after a stop
_TICK_S = 0.2
_YIELD_S = 5e-5  # between two looks whether the replies are written
_MAX_YIELD_S = 5e-3  # for which this thread leaves interpreter and core to the event loop that writes the replies


class Engine:
    """Runs one coordinator in a thread of its own."""

    def __init__(
        self,
        coordinator: Coordinator,
        *,
        ledger: Ledger,
        metrics: Metrics,
        on_fact: Callable[[Fact], None],
        on_end: Callable[[], None],
        warn: Callable[[str], None],
        archive: Archive | None = None,
    ) -> None:
        """Without an archive nothing is kept beyond this process."""
        self.coordinator = coordinator
        self.drained = False  # it stopped between two waves, to be resumed
        self.failure: str | None = None
        self._draining = False
        self._turn: Turn | None = None  # the last one
        self._metrics, self._on_fact, self._on_end, self._warn = metrics, on_fact, on_end, warn
        self._meter = Meter(ledger, metrics)
        self._refusals = Refusals(metrics, warn)
        self._clock = PauseClock(time.monotonic())  # of all deadlines; only the loop reads it
        self._ended_at: float | None = None
        self._next_tick = 0.0
        self._workers = Workers(coordinator.config.run.threads)
        self.sessions = Sessions(coordinator, incarnation=secrets.randbits(63))
        self.links = Links(
            self.sessions, meter=self._meter, metrics=metrics, refusals=self._refusals, on_fact=on_fact, now=self._now
        )
        limits = coordinator.config.server.limits
        self.inbox = Inbox(self.links, limits, refusals=self._refusals, pauses=metrics.slowed)
        self._durability = Durability(self.sessions, archive, metrics=metrics, on_fact=on_fact, warn=warn)
        watch_load(metrics, self.inbox, coordinator)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.health = Health(self._thread)

    # --- before the start

    def resume(self, tree: Tree) -> None:
        """Begin from a snapshot."""
        self._durability.resume(tree)

    def record(self, log: EventLog) -> None:
        """Write every event from now on to `log`."""
        self.sessions.log = log

    # --- called from any thread

    def start(self) -> None:
        """Begin to take events."""
        self._thread.start()

    def join(self, timeout: float) -> None:
        """Wait until the loop is over."""
        self._thread.join(timeout)

    def stop(self, reason: str) -> None:
        """End the run early; clients are told."""
        self.health.ends("stopping: the run ends early")
        self.inbox.put(partial(self.sessions.stop, reason))

    def drain(self) -> None:
        """End after the wave that is under way, or at once if all its clients are away, with the state saved.

        Clients are not told that the run is over.
        """
        self.health.ends("stopping, to be resumed")
        self.inbox.put(lambda: setattr(self, "_draining", True))

    # --- the loop

    def _run(self) -> None:
        torch.set_num_threads(self.coordinator.config.run.threads)
        self._durability.begin()
        try:
            worked = False
            while not self._is_over():
                self.inbox.take(0 if worked else _TICK_S)
                self._tick()
                worked = self._work()
        except (Exception, SystemExit) as error:  # a bug, or training that diverged: say so to everybody and end
            self._fail(error)
        finally:
            self.health.ends(OVER)
            self._on_end()

    def _now(self) -> float:
        """Return seconds since the start, without gaps in which this loop did not look: nobody is late for them."""
        return self._clock.read(time.monotonic())

    def _work(self) -> bool:
        """Do at most one cohort's work and send its messages. Return False if the next event must come first."""
        if self._stops_here():
            return False
        started = time.perf_counter()
        self._turn = turn = self.sessions.advance()
        if not turn.worked:
            self._report(turn)
            return False
        computed = time.perf_counter()
        self.links.refuse_expelled(turn)
        sent = [self.links.say(client, message, started, computed) for client, message in turn.messages]
        self._let_write([stream for stream in sent if stream is not None], turn)
        self.coordinator.run_deferred_step()
        for job in turn.jobs:
            self._workers.do(partial(self._align, job))
        self._report(turn)
        return True

    def _let_write(self, streams: Sequence[Stream], turn: Turn) -> None:
        """Give the event loop time to write the replies, before the work that can wait, unless events have come."""
        until = time.perf_counter() + _MAX_YIELD_S
        while streams and self.inbox.is_empty():
            time.sleep(_YIELD_S)
            streams = [stream for stream in streams if stream.writing]
            if streams and (turn.waiting or time.perf_counter() > until):
                return

    def _report(self, turn: Turn) -> None:
        """Count, measure and report what was put off until the replies were handed over."""
        self._meter.flush()
        for fact in turn.facts():
            self._metrics.fact(fact)
            self._on_fact(fact)

    def _stops_here(self) -> bool:
        """Save the state, or go back to the last one saved, if due. Return True if the run stops, to be resumed."""
        stage = self.coordinator.stage
        if stage == "redo":
            self.links.drop_all()
            self._durability.go_back(self._now())
            stage = self.coordinator.stage
        if stage == "over":
            return False
        if stage == "wave":
            # With nobody there to finish the wave, the last checkpoint is what there is to keep.
            self.drained = self._draining and not self.links.streams
            return self.drained
        if stage == "checkpoint" or (self._draining and not self._durability.is_saved):
            self._durability.save()
        self.drained = self._draining
        return self.drained

    def _is_over(self) -> bool:
        if self.drained:
            for stream in self.links.streams:
                stream.close()
            return True
        ended = None if self._turn is None else self._turn.ended
        if ended is None:
            return False
        self.health.ends(OVER)
        self.links.all_told = True
        now = self._now()
        self._ended_at = now if self._ended_at is None else self._ended_at
        linger_s = LINGER_S if ended.finished else HURRY_S
        return not self.links or now - self._ended_at > linger_s

    def _tick(self) -> None:
        now = self._now()
        if now < self._next_tick:
            return
        self._next_tick = now + _TICK_S
        self._refusals.look()
        self.links.look_after(now)
        wake_at = None if self._turn is None else self._turn.wake_at
        if self.coordinator.config.protocol.barrier.timed or (wake_at is not None and now >= wake_at):
            self.sessions.tick(now)

    def _fail(self, error: BaseException) -> None:
        text = str(error) if isinstance(error, CutlayerError) else f"internal error: {error!r}"
        self.failure = text
        if not isinstance(error, CutlayerError):
            self._warn(traceback.format_exc())
        self.sessions.stop(text)
        self._work()
        time.sleep(_TICK_S)  # let the streams carry the Bye

    # --- alignments, in the threads of the workers

    def _align(self, job: Job) -> None:
        """Run a job in a worker's thread; its result comes back as an event of the inbox."""
        try:
            result, fact = run_timed(job)
        except WireError as error:
            refused = Refused("protocol", f"broke the protocol: {error}")
            self.inbox.put(partial(self.links.refuse, job.client, refused))
            return
        except (Exception, SystemExit) as error:  # the loop ends the run with it
            self.inbox.put(partial(_raise, error))
            return
        self.inbox.put(partial(self._aligned, job.client, result, fact))

    def _aligned(self, client: str, result: Aligned, fact: AuxAligned) -> None:
        self.sessions.aligned(client, result)
        self._metrics.fact(fact)
        self._on_fact(fact)


def _raise(error: BaseException) -> None:
    raise error
