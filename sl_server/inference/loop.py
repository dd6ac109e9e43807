"""The one loop that answers after a run: a thread that takes what streams bring and puts waiting queries through the head together.

Law: streams only enqueue. Endpoints, heads, torch and codecs belong to this thread; there is no lock. A query's scores depend on no
other query but for the rounding of a larger matrix product. Nothing of a client outlives its stream.
"""

from __future__ import annotations

import contextlib
import queue
import secrets
import threading
import time
import traceback
from collections.abc import Callable, Sequence

import torch

from sl_common.errors import CutlayerError, Refused, WireError
from sl_common.limits import PeerLimits
from sl_common.messages.inference import Fetch, InferenceReply, Query, Scores
from sl_common.pauses import PauseClock
from sl_common.protocol import WaitUntil
from sl_common.wire import Hello, Refusal
from sl_server.core.identity import StreamIdentity
from sl_server.inference.batch import WaitingQuery, compute
from sl_server.inference.clients import InferenceClient, InferenceClients, offer_of
from sl_server.inference.meter import InferMeter, Spent
from sl_server.inference.metrics import InferMetrics
from sl_server.inference.microbatch import MicroBatching
from sl_server.storage.trained import TrainedRun
from sl_server.telemetry.health import Health
from sl_server.telemetry.ledger import Ledger
from sl_server.training.engine import FRAME_COSTS, UNREAD, Stream
from sl_server.transport.refusals import Refusals

_AT_ONCE = 256  # events that are taken before the head computes again


class Inference:
    """Answers for one run, in a thread of its own."""

    def __init__(
        self,
        trained: TrainedRun,
        batching: MicroBatching,
        *,
        ledger: Ledger,
        metrics: InferMetrics,
        warn: Callable[[str], None],
        on_end: Callable[[], None],
    ) -> None:
        self._trained = trained
        self._batching = batching
        self._metrics = metrics
        self._meter = InferMeter(ledger, metrics)
        self._warn, self._on_end = warn, on_end
        self._offer = offer_of(trained)
        self._refusals = Refusals(metrics, warn)
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._posted = self._taken = 0  # bytes; the event loop counts the first, our loop the second
        self._askers = InferenceClients(trained)
        self._clock = PauseClock(time.monotonic())  # of all deadlines; only the loop reads it
        self._waiting: list[WaitingQuery] = []
        self._incarnation = secrets.randbits(63)
        self._draining = False
        self.failure: str | None = None
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self.health = Health(self._thread)

    # --- called from any thread

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def opened(self, stream: Stream, hello: bytes, identity: StreamIdentity) -> None:
        """A stream brought its first frame; `identity` is what its transport proves."""
        self._inbox.put(lambda: self._open(stream, hello, identity))

    @property
    def limits(self) -> PeerLimits:
        """What one peer may cost."""
        return self._trained.config.server.limits

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
        """A stream is gone, and what it asked with it."""
        self._inbox.put(lambda: self._lose(stream))

    def refused(self, who: str, error: Refused) -> None:
        """Somebody was sent away at the door."""
        self._inbox.put(lambda: self._refusals.note(who, error))

    def proven(self, stream: Stream, identity: StreamIdentity) -> None:
        """What an open stream proves has changed."""
        self._inbox.put(lambda: self._prove(stream, identity))

    def slowed(self, seconds: float) -> None:
        """A stream is not read for so long, since it is too fast."""
        self._metrics.slowed.inc(seconds)

    def drain(self) -> None:
        """Answer what is waiting, then end all streams and the loop."""
        self.health.ends("stopping")
        self._inbox.put(lambda: setattr(self, "_draining", True))

    # --- the loop

    def _run(self) -> None:
        torch.set_num_threads(self._trained.config.run.threads)
        wait_s: float | None = None
        try:
            while not self._draining or self._waiting:
                self._take_events(wait_s)
                wait_s = self._look_after(self._work())
                self._meter.settle()
        except (Exception, SystemExit) as error:  # a bug, or a head that cannot compute
            self.failure = str(error) if isinstance(error, CutlayerError) else f"internal error: {error!r}"
            self._warn(traceback.format_exc())
        finally:
            for asker in self._askers:
                asker.stream.close()
            self.health.ends()
            self._on_end()

    def _now(self) -> float:
        """Seconds without those in which this loop did not look: nobody is late for them."""
        return self._clock.read(time.monotonic())

    def _take_events(self, wait_s: float | None) -> None:
        """Whatever lies in the inbox, but not more than a bounded share of it; None waits for the first of them."""
        with contextlib.suppress(queue.Empty):
            self._inbox.get(timeout=wait_s)()
            for _ in range(_AT_ONCE):
                self._inbox.get_nowait()()

    def _work(self) -> float | None:
        """Compute what is due; how long to wait for events then, None until there is one."""
        if not self._waiting:
            return None
        now = time.perf_counter()
        others = not self._draining and self._askers.may_ask(self._waiting[0].head)
        chosen = self._batching.choose(self._waiting, others=others, now=now)
        if isinstance(chosen, WaitUntil):
            return max(0.0, chosen.now - now)
        taken = set(chosen)
        self._waiting = [one for one in self._waiting if one not in taken]
        self._answer(chosen)
        return 0.0 if self._waiting else None

    def _answer(self, chosen: Sequence[WaitingQuery]) -> None:
        started = time.perf_counter()
        scores = compute(self._trained.heads, chosen)
        computed = before = time.perf_counter()
        for one, own in zip(chosen, scores, strict=True):
            asker = one.asker
            self._say(asker, Scores(step=one.query.step, scores=own))
            after = time.perf_counter()
            spent = Spent(residence=after - one.arrived, decode=one.decode_s, encode=after - before)
            asker.answered(one.query.step, spent, self._now())
            self._meter.waited(started - one.arrived - one.decode_s)
            before = after
        self._meter.computed(len(chosen), sum(one.samples for one in chosen), computed - started)

    def _say(self, asker: InferenceClient, message: InferenceReply) -> None:
        frames = asker.endpoint.pack(message)
        asker.stream.send(frames)
        self._meter.said(message, frames)

    # --- streams

    def _open(self, stream: Stream, data: bytes, identity: StreamIdentity) -> None:
        client = next(iter(identity.certificate or ()), "")
        try:
            hello = Hello.from_frame(data)
            client = hello.client or client
            asker = self._askers.let_in(stream, hello, identity, self._now())
        except (Refused, WireError) as error:
            self._refuse(stream, client, error)
            return
        self._metrics.connected.inc()
        stream.send([asker.greeting(self._incarnation).to_frame()])
        self._say(asker, self._offer)

    def _feed(self, stream: Stream, data: bytes, arrived: float) -> None:
        stream.taken += len(data) + FRAME_COSTS
        self._taken += len(data) + FRAME_COSTS
        asker = self._askers.of(stream)
        if asker is None:
            return
        try:
            self._take(asker, data, arrived)
        except (Refused, WireError) as error:
            self._expel(asker, error)

    def _take(self, asker: InferenceClient, data: bytes, arrived: float) -> None:
        fed = time.perf_counter()
        asker.patience.heard(self._now())
        received = asker.endpoint.feed(data)
        asker.stream.outgoing.check(asker.endpoint.acknowledged)
        decode_s = time.perf_counter() - fed
        self._meter.came(received)
        if received.timing is not None:
            self._meter.complete(asker.spent, received.timing)
        match received.message:
            case Query() as query:
                asker.check(query)
                asker.waiting += 1
                self._waiting.append(WaitingQuery(asker=asker, query=query, arrived=arrived, decode_s=decode_s))
            case Fetch() as fetch:
                self._say(asker, asker.hand_out(fetch))
        due = asker.endpoint.due(fed) if asker.stream.waiting < UNREAD else ()
        if due:
            asker.stream.send(due)
            self._meter.sent(due)

    def _prove(self, stream: Stream, identity: StreamIdentity) -> None:
        asker = self._askers.of(stream)
        if asker is None:
            return
        try:
            asker.prove(identity)
        except Refused as error:
            self._expel(asker, error)

    def _look_after(self, wait_s: float | None) -> float | None:
        """Nobody is waited for without end: how long to wait for events, with an eye on those who are here."""
        now = self._now()
        for asker, error in self._askers.overdue(now):
            if error.code == "slow" and not asker.endpoint.small:
                asker.stream.close()  # it comes back with small frames, which take less than a message may stand still
            else:
                self._expel(asker, error)
        look_s = self._askers.look_s(now)
        return min((s for s in (wait_s, look_s) if s is not None), default=None)

    def _expel(self, asker: InferenceClient, why: Refused | WireError) -> None:
        self._lose(asker.stream)
        self._refuse(asker.stream, asker.client, why)

    def _lose(self, stream: Stream) -> None:
        asker = self._askers.leave(stream)
        if asker is not None:
            self._metrics.connected.dec()
            self._waiting = [one for one in self._waiting if one.asker is not asker]

    def _refuse(self, stream: Stream, client: str, why: Refused | WireError) -> None:
        error = why if isinstance(why, Refused) else Refused("protocol", str(why))
        self._refusals.note(f"{repr(client)[:80] if client else 'a client'} at {stream.peer}", error)
        stream.send([Refusal(code=error.code, reason=error.reason).to_frame()])
        stream.close()
