"""The one loop that touches the coordinator: a thread that takes what streams bring, and alternates events with work.

Law: streams only enqueue. Sessions, coordinator, torch and codecs belong to this thread; there is no lock. A long silent stretch
of work never blocks a leave, a tick or a stop for longer than one cohort.
"""

from __future__ import annotations

import contextlib
import copy
import queue
import secrets
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, SupportsBytes

import torch

from sl_common.errors import CutlayerError, Refused, WireError
from sl_common.host.descriptors import cause
from sl_common.limits import PeerLimits
from sl_common.messages.facts import AuxAligned, ClientAway, ClientBack, Fact, WentBack
from sl_common.messages.training import Aligned
from sl_common.pauses import PauseClock
from sl_common.training.segment import Tree
from sl_common.wire import Frame, Hello, Refusal
from sl_common.wire.outgoing import Outgoing
from sl_server.core.alignments import Job
from sl_server.core.coordinator import Coordinator
from sl_server.core.identity import StreamIdentity, admit
from sl_server.core.outbox import Turn
from sl_server.core.sessions import Opened, Session, Sessions
from sl_server.telemetry.health import OVER, Health
from sl_server.telemetry.ledger import Ledger
from sl_server.telemetry.metrics import Metrics
from sl_server.training.meter import Clock, Meter, StepSpan
from sl_server.training.workers import Workers, run_timed
from sl_server.transport.deadlines import Deadlines, look_every_s
from sl_server.transport.refusals import Refusals

LINGER_S = 10.0  # after the run, for clients that have not taken their Bye yet
HURRY_S = 2.0  # the same after a stop
_TICK_S = 0.2
_YIELD_S = 5e-5  # between two looks whether what was just said has gone out
_AT_MOST_S = 5e-3  # that this thread leaves interpreter and core to those who write it
_AT_ONCE = 256  # events that are taken before the coordinator works again
FRAME_COSTS = 512  # bytes that a frame in the inbox takes beside its own: a million empty ones are not nothing
UNREAD = 64  # frames that wait in an outbox; a bare acknowledgement is not put behind more


class Stream(Protocol):
    """One open stream, as the engine sees it. Both methods may be called from the engine's thread and return at once."""

    peer: str  # where it comes from, without the port
    posted: int  # bytes that the stream put into the inbox
    taken: int  # bytes that the engine took out of it
    written: int  # frames that went out
    held: bool  # it is not read for now
    outgoing: Outgoing  # what was sent and waits

    @property
    def waiting(self) -> int:
        """Frames that were sent and have not gone out."""
        ...

    @property
    def writing(self) -> bool:
        """Something that was sent has not gone out."""
        ...

    def send(self, frames: Sequence[SupportsBytes]) -> None:
        """Write these frames, in order."""
        ...

    def close(self) -> None:
        """End the stream after what was sent."""
        ...


class Archive(Protocol):
    """Where the run's state is made durable."""

    def save(self, number: int, tree: Tree) -> None:
        """Durable when it returns; raises OSError with what was saved before still there."""
        ...

    def back(self) -> None:
        """The run goes back to what was saved last: what it wrote since then never happened."""
        ...


@dataclass(kw_only=True, slots=True)
class _Link:
    """A session and the stream that carries it now; None while the client is away."""

    session: Session
    stream: Stream | None
    clock: Clock
    patience: Deadlines
    away_since: float = 0.0
    heard_at: float = 0.0
    spared_at: int = -1  # frames received when its stream was ended, so that it comes back with small ones


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
        self._archive = archive
        self._kept: Tree | None = (
            None  # where on_lost = redo goes back to: the newest durable snapshot, or the run's beginning
        )
        self._turn: Turn | None = None  # the last one
        self._durable: int | None = None  # between which waves the state was last made durable; 0: before the first
        self._draining = False
        self._posted = self._taken = 0  # bytes; the event loop counts the first, our loop the second
        self.sessions = Sessions(coordinator, incarnation=secrets.randbits(63))
        self.failure: str | None = None
        self._meter = Meter(ledger, metrics)
        self._metrics = metrics
        self._on_fact = on_fact
        self._on_end = on_end
        self._warn = warn
        self._refusals = Refusals(metrics, warn)
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._links: dict[Session, _Link] = {}
        self._by_stream: dict[Stream, _Link] = {}
        self._clock = PauseClock(time.monotonic())  # of all deadlines; only the loop reads it
        self._ended_at: float | None = None
        self._next_tick = self._next_look = 0.0
        self._workers = Workers(coordinator.config.run.threads)
        metrics.watch(
            {
                "sl_queue_events": self._inbox.qsize,
                "sl_queue_bytes": lambda: self.backlog,
                "sl_waiting_batches": lambda: coordinator.load().waiting_batches,
                "sl_recorded_memory_bytes": lambda: coordinator.load().recorded_memory_bytes,
                "sl_recorded_disk_bytes": lambda: coordinator.load().recorded_disk_bytes,
                "sl_device_memory_bytes": _device_memory,
            }
        )
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.health = Health(self._thread)

    # --- called from any thread

    def start(self) -> None:
        """Begin to take events."""
        self._thread.start()

    def join(self, timeout: float) -> None:
        """Wait until the loop is over."""
        self._thread.join(timeout)

    def opened(self, stream: Stream, hello: bytes, identity: StreamIdentity) -> None:
        """A stream brought its first frame; `identity` is what its transport proves."""
        self._inbox.put(lambda: self._open(stream, hello, identity))

    @property
    def limits(self) -> PeerLimits:
        """What one peer may cost."""
        return self.coordinator.config.server.limits

    @property
    def backlog(self) -> int:
        """Bytes that streams brought and the loop has not taken yet."""
        return self._posted - self._taken

    def came(self, stream: Stream, frame: bytes) -> None:
        """A stream brought a frame."""
        stream.posted += len(frame) + FRAME_COSTS
        self._posted += len(frame) + FRAME_COSTS
        arrived = time.perf_counter()
        self._inbox.put(lambda: self._feed(stream, frame, arrived))

    def closed(self, stream: Stream) -> None:
        """A stream is gone."""
        self._inbox.put(lambda: self._lose(stream))

    def refused(self, who: str, error: Refused) -> None:
        """Somebody was sent away before there was a session."""
        self._inbox.put(lambda: self._refusals.note(who, error))

    def proven(self, stream: Stream, identity: StreamIdentity) -> None:
        """What an open stream proves has changed."""
        self._inbox.put(lambda: self._prove(stream, identity))

    def slowed(self, seconds: float) -> None:
        """A stream is not read for so long, since it is too fast."""
        self._metrics.slowed.inc(seconds)

    def stop(self, reason: str) -> None:
        """End the run early; clients are told."""
        self.health.ends("stopping: the run ends early")
        self._inbox.put(lambda: self.sessions.stop(reason))

    def drain(self) -> None:
        """Finish the wave that is under way if its clients are there, keep what there is, and end; they are not told that the run
        is over."""
        self.health.ends("stopping, to be resumed")
        self._inbox.put(lambda: setattr(self, "_draining", True))

    # --- the loop

    def _run(self) -> None:
        torch.set_num_threads(self.coordinator.config.run.threads)
        if self._kept is None:
            self._remember(self.sessions.snapshot())
        try:
            worked = False
            while not self._is_over():
                self._take_events(0 if worked else _TICK_S)
                self._tick()
                worked = self._work()
        except (Exception, SystemExit) as error:  # a bug, or training that diverged: say so to everybody and end
            self._fail(error)
        finally:
            self.health.ends(OVER)
            self._on_end()

    def _now(self) -> float:
        """Seconds since the run began, without those in which this loop did not look: nobody is late for them."""
        return self._clock.read(time.monotonic())

    def _take_events(self, wait_s: float) -> None:
        """Whatever lies in the inbox, but not more than a bounded share of it: work comes after."""
        with contextlib.suppress(queue.Empty):
            self._inbox.get(timeout=wait_s)()
            for _ in range(_AT_ONCE):
                self._inbox.get_nowait()()

    def _work(self) -> bool:
        if self._rest():
            return False
        started = time.perf_counter()
        self._turn = turn = self.sessions.advance()
        if not turn.worked:
            self._tell(turn)
            return False
        computed = time.perf_counter()
        self._expel_guilty(turn)
        told: list[Stream] = []
        for name, message in turn.messages:
            session = self.sessions.by_client.get(name)
            if session is None:
                continue
            link = self._links[session]
            before = time.perf_counter()
            try:
                frames = session.endpoint.pack(message)
            except WireError as error:  # it acknowledges nothing, and we would keep it all
                self._expel(link, Refused("protocol", str(error)))
                continue
            span = StepSpan(started=started, computed=computed, encoding=before, encoded=time.perf_counter())
            self._send(link, frames)
            self._meter.said(link.clock, message, span)
            told += [link.stream] if link.stream is not None else []
        self._let_write(told, turn)
        self.coordinator.run_deferred_step()
        for job in turn.jobs:
            self._workers.do(partial(self._align, job))
        self._tell(turn)
        return True

    def _expel_guilty(self, turn: Turn) -> None:
        """Refuse the clients whose fault the last work found."""
        for session, error in self.sessions.end_expelled(turn):
            link = self._links.get(session)
            if link is not None:
                self._drop(link)
                if link.stream is not None:
                    self._refuse(link.stream, session.client, Refused("protocol", str(error)))

    def _let_write(self, streams: Sequence[Stream], turn: Turn) -> None:
        """Somebody waits for what was said; what is still to be computed can wait, unless more has come."""
        until = time.perf_counter() + _AT_MOST_S
        while streams and self._inbox.empty():
            time.sleep(_YIELD_S)
            streams = [stream for stream in streams if stream.writing]
            if streams and (turn.waiting or time.perf_counter() > until):
                return

    def _rest(self) -> bool:
        """Between two waves: keep the run's state if it is due; True if nothing more may begin."""
        coordinator = self.coordinator
        stage = coordinator.stage
        if stage == "redo" and self._kept is not None:
            self._go_back(self._kept)
            stage = coordinator.stage
        if stage == "over":
            return False
        if stage not in ("rest", "checkpoint"):
            # with nobody there to finish the wave, the last checkpoint is what there is to keep
            self.drained = self._draining and all(link.stream is None for link in self._links.values())
            return self.drained
        if stage == "checkpoint" or (self._draining and self._durable != coordinator.completed_waves):
            self._checkpoint()
        self.drained = self._draining
        return self.drained

    def _checkpoint(self) -> None:
        if self._archive is None:
            return
        began = time.perf_counter()
        tree = self.sessions.snapshot()
        try:
            self._archive.save(self.coordinator.completed_waves, tree)
        except OSError as error:
            self._metrics.checkpoint(None)
            self._warn(
                f"no checkpoint after wave {self.coordinator.completed_waves} ({cause(error)}); training goes on"
            )
            return
        self._durable = self.coordinator.completed_waves
        self._metrics.checkpoint(time.perf_counter() - began)
        self._remember(tree)
        self.sessions.saved()

    def _remember(self, tree: Tree) -> None:
        """A snapshot is as large as the run's state: it stays in memory only where the run may go back to it."""
        if self.coordinator.config.run.on_lost == "redo":
            self._kept = copy.deepcopy(tree)

    def resume(self, tree: Tree) -> None:
        """Begin from a snapshot; before `start`."""
        self._remember(tree)
        self.sessions.restore(tree)
        self._durable = self.coordinator.completed_waves
        self._on_fact(WentBack(checkpoint=self._durable))

    def _go_back(self, tree: Tree) -> None:
        """A client was lost: everybody goes back to the last checkpoint, and it is waited for."""
        for link in list(self._links.values()):
            self._drop(link)
            if link.stream is not None:
                link.stream.close()
        self._metrics.rolled_back()
        if self._archive is not None:
            self._archive.back()
        self.sessions.restore(copy.deepcopy(tree), self._now())
        checkpoint = self.coordinator.completed_waves
        self._on_fact(WentBack(checkpoint=checkpoint))
        self._warn(f"a client was lost: back to checkpoint {checkpoint}, run.on_lost = redo")

    def _align(self, job: Job) -> None:
        """In a worker's thread; the result is one more thing that the loop takes out of its inbox."""
        try:
            result, told = run_timed(job)
        except WireError as error:
            self._inbox.put(partial(self._unaligned, job.client, error))
            return
        except Exception as error:  # the loop ends the run with it
            self._inbox.put(partial(_raise, error))
            return
        self._inbox.put(lambda: self._aligned(job.client, result, told))

    def _unaligned(self, client: str, error: WireError) -> None:
        """Its samples cannot be aligned with: it is refused, unless it has left meanwhile."""
        link = self._links.get(self.sessions.by_client[client]) if client in self.sessions.by_client else None
        if link is not None:
            self._expel(link, Refused("protocol", f"broke the protocol: {error}"))

    def _aligned(self, client: str, result: Aligned, told: AuxAligned) -> None:
        self.sessions.aligned(client, result)
        self._metrics.fact(told)
        self._on_fact(told)

    def _tell(self, turn: Turn) -> None:
        """What was put off until the replies were on their way: counts, metrics, facts."""
        self._meter.settle()
        for fact in turn.facts():
            self._metrics.fact(fact)
            self._on_fact(fact)

    def _send(self, link: _Link, frames: Sequence[Frame]) -> None:
        if link.stream is None:
            return
        link.stream.send(frames)
        self._meter.sent(link.clock, frames)

    def _is_over(self) -> bool:
        if self.drained:
            for link in self._links.values():
                if link.stream is not None:
                    link.stream.close()
            return True
        ended = None if self._turn is None else self._turn.ended
        if ended is None:
            return False
        self.health.ends(OVER)
        now = self._now()
        self._ended_at = now if self._ended_at is None else self._ended_at
        patience = LINGER_S if ended.finished else HURRY_S
        return not self._links or now - self._ended_at > patience

    def _tick(self) -> None:
        now = self._now()
        if now < self._next_tick:
            return
        self._next_tick = now + _TICK_S
        self._refusals.look()
        grace = self.coordinator.config.run.grace_s
        for link in list(self._links.values()):
            if link.stream is None and now - link.away_since > grace:
                self._drop(link)
                self.sessions.lose(link.session, f"away for more than grace_s = {grace:g} s")
        self._look_after(now)
        wake_at = None if self._turn is None else self._turn.wake_at
        if self.coordinator.config.protocol.barrier.timed or (wake_at is not None and now >= wake_at):
            self.sessions.tick(now)

    def _look_after(self, now: float) -> None:
        """Nobody is waited for without end."""
        if now < self._next_look:
            return
        self._next_look = now + look_every_s(self.limits)
        for link in list(self._links.values()):
            session, stream = link.session, link.stream
            held = stream is None or stream.held or stream.posted != stream.taken
            owes = self.coordinator.owes(session.client)
            self._acknowledge(link)
            written = 0 if stream is None else stream.written
            error = link.patience.fault(session.endpoint.missing, now, owes=owes, held=held, written=written)
            if error is not None and not self._spare(link, error):
                self._expel(link, error)

    def _spare(self, link: _Link, error: Refused) -> bool:
        """An ordinary frame may take longer on its way than a message may stand still: whoever loses its stream comes back with small frames."""
        endpoint, stream = link.session.endpoint, link.stream
        if error.code != "slow" or endpoint.small or stream is None or endpoint.received <= link.spared_at:
            return False
        link.spared_at = endpoint.received
        link.patience.spare()
        stream.close()
        return True

    def _prove(self, stream: Stream, identity: StreamIdentity) -> None:
        link = self._by_stream.get(stream)
        if link is None:
            return
        try:
            admit(link.session.client, identity)
        except Refused as error:
            reason = error.reason if error.code == "revoked" else f"not admitted any more: {error.reason}"
            self._expel(link, Refused("revoked", reason))

    def _expel(self, link: _Link, error: Refused) -> None:
        """Its session is over, and its stream if it has one."""
        self._drop(link)
        self.sessions.lose(link.session, error.reason)
        if link.stream is not None:
            self._refuse(link.stream, link.session.client, error)

    def _fail(self, error: BaseException) -> None:
        text = str(error) if isinstance(error, CutlayerError) else f"internal error: {error!r}"
        self.failure = text
        if not isinstance(error, CutlayerError):
            self._warn(traceback.format_exc())
        self.sessions.stop(text)
        self._work()
        time.sleep(_TICK_S)  # let the streams carry the Bye

    # --- streams

    def _open(self, stream: Stream, data: bytes, identity: StreamIdentity) -> None:
        client = next(iter(identity.certificate or ()), "")
        try:
            hello = Hello.from_frame(data)
            client = hello.client or client
            opened = self.sessions.open(hello, identity)
        except Refused as error:
            self._refuse(stream, client, error)
            return
        except WireError as error:
            self._refuse(stream, client, Refused("protocol", str(error)))
            return
        if opened.replaces is not None:
            self._replace(opened.replaces)
        self._attach(stream, opened)

    def _attach(self, stream: Stream, opened: Opened) -> None:
        link = self._links.get(opened.session)
        if link is None:
            clock = Clock(client=opened.session.client)
            patience = Deadlines(self.coordinator.config.server.limits, self._now())
            link = _Link(session=opened.session, stream=stream, clock=clock, patience=patience)
            self._links[opened.session] = link
            self._refusals.joined(clock.client)
            self._metrics.connected(clock.client, 1)
        else:
            self._metrics.reconnected(link.clock.client)
            if link.stream is None:
                self._metrics.away(-1)
                self._on_fact(ClientBack(client=link.session.client))
                self._metrics.connected(link.clock.client, 1)
            else:
                self._by_stream.pop(link.stream, None)
                link.stream.close()
            link.stream = stream
        self._by_stream[stream] = link
        link.heard_at = time.perf_counter()
        stream.send([opened.greeting.to_frame()])
        self._send(link, opened.resend)

    def _feed(self, stream: Stream, data: bytes, arrived: float) -> None:
        stream.taken += len(data) + FRAME_COSTS
        self._taken += len(data) + FRAME_COSTS
        link = self._by_stream.get(stream)
        if link is None:
            return
        fed = time.perf_counter()
        link.patience.heard(self._now())
        link.heard_at = fed
        try:
            received = self.sessions.feed(link.session, data)
            stream.outgoing.check(link.session.endpoint.acknowledged)
        except WireError as error:
            self._expel(link, Refused("protocol", str(error)))
            return
        except Refused as error:
            self._expel(link, error)
            return
        self._meter.took(link.clock, received, arrived=arrived, fed=fed, decoded=time.perf_counter())
        self._acknowledge(link)
        if link.session.closed:  # it said Leave
            self._drop(link)
            stream.close()

    def _acknowledge(self, link: _Link) -> None:
        """Send what is due after a frame came; a peer that reads nothing gets no acknowledgements on top of what it does not read."""
        if link.stream is None or link.stream.waiting >= UNREAD:
            return
        due = link.session.endpoint.due(time.perf_counter())
        if due:
            self._send(link, due)

    def _lose(self, stream: Stream) -> None:
        link = self._by_stream.pop(stream, None)
        if link is None:
            return
        self._metrics.connected(link.clock.client, -1)
        if self._turn is not None and self._turn.ended is not None and link.session.endpoint.settled:
            self._links.pop(link.session, None)  # it has its Bye
            return
        link.stream, link.away_since = None, self._now() + self._late_s(link)
        self._metrics.away(1)
        self._on_fact(ClientAway(client=link.session.client))

    def _late_s(self, link: _Link) -> float:
        """After how long a client may hear that its stream is broken. If nothing came for as long as a probe may take, what was sent may
        still be on its way over a slow link, out of this machine's buffers, and the end of the stream comes behind it."""
        dead_s = self.limits.dead_s
        quiet_s = time.perf_counter() - link.heard_at
        return dead_s if quiet_s > 0.6 * dead_s and not link.session.endpoint.settled else 0.0

    def _drop(self, link: _Link) -> None:
        self._links.pop(link.session, None)
        if link.stream is None:
            self._metrics.away(-1)
        else:
            self._by_stream.pop(link.stream, None)
            self._metrics.connected(link.clock.client, -1)

    def _replace(self, session: Session) -> None:
        link = self._links.get(session)
        if link is None:
            return
        self._drop(link)
        if link.stream is not None:
            reason = f"another client has joined as {session.client!r}"
            self._refuse(link.stream, session.client, Refused("replaced", reason))

    def _refuse(self, stream: Stream, client: str, error: Refused) -> None:
        self._refusals.note(f"{repr(client)[:80] if client else 'a client'} at {stream.peer}", error, client)
        stream.send([Refusal(code=error.code, reason=error.reason).to_frame()])
        stream.close()


def _device_memory() -> int:
    """Bytes that torch's tensors take on all GPUs; asks none that this process does not use."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return 0
    return sum(torch.cuda.memory_allocated(device) for device in range(torch.cuda.device_count()))


def _raise(error: Exception) -> None:
    raise error
