"""The loop that answers after a run: a thread that takes what streams bring and computes waiting queries together.

Law: streams only enqueue. Endpoints, heads, torch and codecs belong to this thread; there is no lock. A query's scores
depend on no other query but for the rounding of a larger matrix product. Nothing of a client outlives its stream.
"""

from __future__ import annotations

import secrets
import threading
import time
import traceback
from collections.abc import Callable, Sequence

import torch

from sl_common.errors import CutlayerError, Refused, WireError
from sl_common.messages.inference import Fetch, InferenceReply, Query, Scores
from sl_common.pauses import PauseClock
from sl_common.protocol import WaitUntil
from sl_common.wire import Hello
from sl_server.core.identity import StreamIdentity
from sl_server.inference.batch import WaitingQuery, compute
from sl_server.inference.clients import InferenceClient, InferenceClients, offer_of
from sl_server.inference.meter import InferMeter, QueryTimes
from sl_server.inference.metrics import InferMetrics
from sl_server.inference.microbatch import MicroBatching
from sl_server.storage.trained import TrainedRun
from sl_server.telemetry.health import Health
from sl_server.telemetry.ledger import Ledger
from sl_server.transport.inbox import Inbox
from sl_server.transport.refusals import Refusals
from sl_server.transport.streams import MAX_UNWRITTEN, Stream


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
        self.inbox = Inbox(self, trained.config.server.limits, refusals=self._refusals, pauses=metrics.slowed)
        self._clients = InferenceClients(trained)
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

    def drain(self) -> None:
        """Answer what is waiting, then end all streams and the loop."""
        self.health.ends("stopping")
        self.inbox.put(lambda: setattr(self, "_draining", True))

    # --- the loop

    def _run(self) -> None:
        torch.set_num_threads(self._trained.config.run.threads)
        wait_s: float | None = None
        try:
            while not self._draining or self._waiting:
                self.inbox.take(wait_s)
                wait_s = self._look_after(self._work())
                self._meter.flush()
        except (Exception, SystemExit) as error:  # a bug, or a head that cannot compute
            self.failure = str(error) if isinstance(error, CutlayerError) else f"internal error: {error!r}"
            self._warn(traceback.format_exc())
        finally:
            for client in self._clients:
                client.stream.close()
            self.health.ends()
            self._on_end()

    def _now(self) -> float:
        """Return seconds since the start, without gaps in which this loop did not look: nobody is late for them."""
        return self._clock.read(time.monotonic())

    def _work(self) -> float | None:
        """Compute the queries that are due. Return how long to wait for events then; None if without limit."""
        if not self._waiting:
            return None
        now = time.perf_counter()
        others = not self._draining and self._clients.may_ask(self._waiting[0].head)
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
            self._say(one.client, Scores(step=one.query.step, scores=own))
            after = time.perf_counter()
            times = QueryTimes(residence=after - one.arrived, decode=one.decode_s, encode=after - before)
            one.client.answered(one.query.step, times, self._now())
            self._meter.waited(started - one.arrived - one.decode_s)
            before = after
        self._meter.computed(len(chosen), sum(one.samples for one in chosen), computed - started)

    def _say(self, client: InferenceClient, message: InferenceReply) -> None:
        frames = client.endpoint.pack(message)
        client.stream.send(frames)
        self._meter.said(message, frames)

    # --- events of streams, from the inbox

    def open(self, stream: Stream, hello: bytes, identity: StreamIdentity) -> None:
        """Admit a client and send it the offer, or refuse it."""
        name = next(iter(identity.certificate or ()), "")
        try:
            said = Hello.from_frame(hello)
            name = said.client or name
            client = self._clients.admit(stream, said, identity, self._now())
        except (Refused, WireError) as error:
            self._refusals.refuse(stream, name, error)
            return
        self._metrics.connected.inc()
        stream.send([client.greeting(self._incarnation).to_frame()])
        self._say(client, self._offer)

    def feed(self, stream: Stream, frame: bytes, arrived: float) -> None:
        """Take a frame of a client, or refuse the client for it."""
        client = self._clients.find(stream)
        if client is None:
            return
        try:
            self._take(client, frame, arrived)
        except (Refused, WireError) as error:
            self._expel(client, error)

    def check_identity(self, stream: Stream, identity: StreamIdentity) -> None:
        """Refuse a client that its transport does not admit any more."""
        client = self._clients.find(stream)
        if client is None:
            return
        try:
            client.check_identity(identity)
        except Refused as error:
            self._expel(client, error)

    def lose(self, stream: Stream) -> None:
        """Forget a client with its stream, and its queries with it."""
        client = self._clients.leave(stream)
        if client is not None:
            self._metrics.connected.dec()
            self._waiting = [one for one in self._waiting if one.client is not client]

    # --- clients

    def _take(self, client: InferenceClient, frame: bytes, arrived: float) -> None:
        fed = time.perf_counter()
        client.deadlines.heard(self._now())
        received = client.endpoint.feed(frame)
        client.stream.outgoing.check(client.endpoint.acknowledged)
        decode_s = time.perf_counter() - fed
        self._meter.received(received)
        if received.timing is not None:
            self._meter.complete(client.times, received.timing)
        match received.message:
            case Query() as query:
                client.check(query)
                client.waiting += 1
                self._waiting.append(WaitingQuery(client=client, query=query, arrived=arrived, decode_s=decode_s))
            case Fetch() as fetch:
                self._say(client, client.hand_out(fetch))
        due = client.endpoint.due(fed) if client.stream.waiting < MAX_UNWRITTEN else ()
        if due:
            client.stream.send(due)
            self._meter.sent(due)

    def _look_after(self, wait_s: float | None) -> float | None:
        """Refuse clients that are overdue. Return how long to wait for events, at most `wait_s`; None: for ever."""
        now = self._now()
        for client, error in self._clients.overdue(now):
            if error.code == "slow" and not client.endpoint.receives_small_frames:
                client.stream.close()  # it comes back with small frames, which take less than a message may stand still
            else:
                self._expel(client, error)
        look_s = self._clients.look_s(now)
        return min((s for s in (wait_s, look_s) if s is not None), default=None)

    def _expel(self, client: InferenceClient, why: Refused | WireError) -> None:
        self.lose(client.stream)
        self._refusals.refuse(client.stream, client.name, why)
