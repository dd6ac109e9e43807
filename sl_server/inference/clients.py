"""The clients of a trained network: who is admitted, and what a client may ask.

It knows no thread and no clock: the time is an argument, in seconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from sl_common import __version__
from sl_common.errors import Refused
from sl_common.messages.inference import Fetch, Lower, Offer, Query
from sl_common.wire import Endpoint, Greeting, Hello
from sl_server.core.identity import StreamIdentity, admit
from sl_server.inference.meter import KEPT_QUERIES, QueryTimes
from sl_server.storage.trained import TrainedRun
from sl_server.transport.deadlines import Deadlines, look_every_s
from sl_server.transport.streams import Stream


@dataclass(kw_only=True, slots=True, eq=False)
class InferenceClient:
    """One client on one stream; nothing of it outlives the stream."""

    name: str  # may be empty where clients need not prove who they are
    head: int | None  # number of the head that answers it
    trained: TrainedRun
    stream: Stream
    endpoint: Endpoint
    deadlines: Deadlines
    waiting: int = 0  # queries without an answer
    unacknowledged: deque[int] = field(default_factory=deque)  # numbers of our messages that are answers
    fetched: bool = False  # it has the lower segment
    times: dict[int, QueryTimes] = field(default_factory=dict)  # of its last queries, by their step

    def check(self, query: Query) -> None:
        """Raise WireError or Refused if the query does not fit this run, or is one too many.

        Answers that the client has not acknowledged count as under way, since they take memory here.
        """
        self.trained.network.check_query(query.z)
        while self.unacknowledged and self.unacknowledged[0] <= self.endpoint.messages_acknowledged:
            self.unacknowledged.popleft()
        window = self.trained.config.client.window
        if self.waiting + len(self.unacknowledged) >= window:
            raise Refused("limit", f"more than client.window = {window} queries under way")

    def check_identity(self, identity: StreamIdentity) -> None:
        """Raise Refused if a stream that proves this identity may not be this client's any more."""
        try:
            admit(self.name, identity)
        except Refused as error:
            raise Refused("revoked", f"not admitted any more: {error.reason}") from None

    def answered(self, step: int, times: QueryTimes, now: float) -> None:
        """Record that a query was answered; the client is expected to speak next."""
        self.deadlines.heard(now)
        self.waiting -= 1
        self.unacknowledged.append(self.endpoint.messages_sent)
        self.times[step] = times
        if len(self.times) > KEPT_QUERIES:
            del self.times[next(iter(self.times))]

    def greeting(self, incarnation: int) -> Greeting:
        """Return the answer to its Hello."""
        return Greeting(client=self.name, received=0, resumed=False, incarnation=incarnation, software=__version__)

    def hand_out(self, _fetch: Fetch) -> Lower:
        """Return the lower segment, once on each stream. Raises Refused."""
        if self.trained.lower is None:
            raise Refused("protocol", "the lower segments of this run are its clients' own: this server has none")
        if self.fetched:
            raise Refused("limit", "the lower segment is sent once on a stream")
        self.fetched = True
        return Lower(weights={"lower": self.trained.lower})


class InferenceClients:
    """The clients that are connected, by their streams."""

    def __init__(self, trained: TrainedRun) -> None:
        self._trained = trained
        self._limits = trained.config.server.limits
        self._connected: dict[Stream, InferenceClient] = {}
        self._next_look = 0.0

    def __iter__(self) -> Iterator[InferenceClient]:
        return iter(self._connected.values())

    def admit(self, stream: Stream, hello: Hello, identity: StreamIdentity, now: float) -> InferenceClient:
        """Return the client of a new stream, as far as its transport proves who it is. Raises Refused."""
        hello.check_version()
        name, trained, most = admit(hello.client, identity), self._trained, self._limits.sessions
        head = trained.head_of(hello.shard, hello.shards)
        if len(self._connected) >= most:
            raise Refused("full", f"{most} clients are here, server.limits.sessions = {most}")
        codec, limit_bytes = trained.config.infer_codec, trained.network.limit_bytes
        window = trained.config.client.window
        endpoint = Endpoint("server", link=codec, limit_bytes=limit_bytes, limit_tensors=0, call="infer", window=window)
        endpoint.resend(0, slow=hello.slow)
        deadlines = Deadlines(self._limits, now)
        client = InferenceClient(
            name=name, head=head, trained=trained, stream=stream, endpoint=endpoint, deadlines=deadlines
        )
        self._connected[stream] = client
        return client

    def find(self, stream: Stream) -> InferenceClient | None:
        """Return the client of a stream; None if it was never admitted or is forgotten."""
        return self._connected.get(stream)

    def leave(self, stream: Stream) -> InferenceClient | None:
        """Forget the client of a stream, and return it."""
        return self._connected.pop(stream, None)

    def may_ask(self, head: int | None) -> bool:
        """Return True if a client of this head waits for no answer, so that it could send a query any time."""
        return any(client.head == head and not client.waiting for client in self)

    def look_s(self, now: float) -> float | None:
        """Return the seconds until `overdue` looks again; None without clients."""
        return max(0.0, self._next_look - now) if self._connected else None

    def overdue(self, now: float) -> list[tuple[InferenceClient, Refused]]:
        """Return the clients that are not waited for any longer, and why. It looks only now and then.

        A client is expected to speak while none of its queries waits for an answer.
        """
        if now < self._next_look:
            return []
        self._next_look = now + look_every_s(self._limits)
        found = []
        for client in self:
            stream = client.stream
            held = stream.held or stream.posted != stream.taken
            error = client.deadlines.fault(
                client.endpoint.missing, now, owes=client.waiting == 0, held=held, written=stream.written
            )
            if error is not None:
                found.append((client, error))
        return found


def offer_of(trained: TrainedRun) -> Offer:
    """Return the first message to every client."""
    return Offer(
        config=trained.config.to_json(),
        lower_sha256=trained.lower_sha256,
        inputs=trained.inputs,
        build=trained.build,
        torch=str(torch.__version__),
    )
