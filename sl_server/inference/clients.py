"""Clients that ask a trained network: who is let in, and what it may ask. It knows no thread and no clock: the time is an
argument, in seconds.
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
from sl_server.inference.meter import KEPT_QUERIES, Spent
from sl_server.storage.trained import TrainedRun
from sl_server.training.engine import Stream
from sl_server.transport.deadlines import Deadlines, look_every_s


@dataclass(kw_only=True, slots=True, eq=False)
class InferenceClient:
    """One client on one stream; with the stream it is forgotten."""

    client: str  # its name; may be empty where nobody asks for a proof
    head: int | None  # which one answers it
    trained: TrainedRun
    stream: Stream
    endpoint: Endpoint
    patience: Deadlines
    waiting: int = 0  # queries that are to be answered
    unheard: deque[int] = field(default_factory=deque)  # which of our messages are answers that it has not acknowledged
    fetched: bool = False
    spent: dict[int, Spent] = field(default_factory=dict)  # on its last queries, by their number

    def check(self, query: Query) -> None:
        """Raises WireError or Refused if this is no query of this run, or one too many.

        Answers that a client does not read count as under way: they lie in our memory.
        """
        self.trained.network.check_query(query.z)
        while self.unheard and self.unheard[0] <= self.endpoint.heard:
            self.unheard.popleft()
        window = self.trained.config.client.window
        if self.waiting + len(self.unheard) >= window:
            raise Refused("limit", f"more than client.window = {window} queries under way")

    def prove(self, identity: StreamIdentity) -> None:
        """What its stream proves has changed. Raises Refused if it is not let in any more."""
        try:
            admit(self.client, identity)
        except Refused as error:
            raise Refused("revoked", f"not admitted any more: {error.reason}") from None

    def answered(self, step: int, spent: Spent, now: float) -> None:
        """A query of its has got its answer: from now on it is its turn."""
        self.patience.heard(now)
        self.waiting -= 1
        self.unheard.append(self.endpoint.said)
        self.spent[step] = spent
        if len(self.spent) > KEPT_QUERIES:
            del self.spent[next(iter(self.spent))]

    def greeting(self, incarnation: int) -> Greeting:
        """What it is told first."""
        return Greeting(client=self.client, received=0, resumed=False, incarnation=incarnation, software=__version__)

    def hand_out(self, _fetch: Fetch) -> Lower:
        """The lower segment, once. Raises Refused."""
        if self.trained.lower is None:
            raise Refused("protocol", "the lower segments of this run are its clients' own: this server has none")
        if self.fetched:
            raise Refused("limit", "the lower segment is sent once on a stream")
        self.fetched = True
        return Lower(weights={"lower": self.trained.lower})


class InferenceClients:
    """All who are here, by their streams."""

    def __init__(self, trained: TrainedRun) -> None:
        self._trained = trained
        self._limits = trained.config.server.limits
        self._here: dict[Stream, InferenceClient] = {}
        self._next_look = 0.0

    def __iter__(self) -> Iterator[InferenceClient]:
        return iter(self._here.values())

    def let_in(self, stream: Stream, hello: Hello, identity: StreamIdentity, now: float) -> InferenceClient:
        """Whom a stream is from, as far as its transport proves it. Raises Refused."""
        hello.check_version()
        name, trained, most = admit(hello.client, identity), self._trained, self._limits.sessions
        head = trained.head_of(hello.shard, hello.shards)
        if len(self._here) >= most:
            raise Refused("full", f"{most} clients are here, server.limits.sessions = {most}")
        codec, limit_bytes = trained.config.infer_codec, trained.network.limit_bytes
        window = trained.config.client.window
        endpoint = Endpoint("server", link=codec, limit_bytes=limit_bytes, limit_tensors=0, call="infer", window=window)
        endpoint.resend(0, slow=hello.slow)
        patience = Deadlines(self._limits, now)
        asker = InferenceClient(
            client=name, head=head, trained=trained, stream=stream, endpoint=endpoint, patience=patience
        )
        self._here[stream] = asker
        return asker

    def of(self, stream: Stream) -> InferenceClient | None:
        """Who asks on it."""
        return self._here.get(stream)

    def leave(self, stream: Stream) -> InferenceClient | None:
        """Who asked on it, and is forgotten now."""
        return self._here.pop(stream, None)

    def may_ask(self, head: int | None) -> bool:
        """Whether somebody could ask this head who waits for no answer."""
        return any(asker.head == head and not asker.waiting for asker in self)

    def look_s(self, now: float) -> float | None:
        """Until the next look at who is overdue; None if there is nobody."""
        return max(0.0, self._next_look - now) if self._here else None

    def overdue(self, now: float) -> list[tuple[InferenceClient, Refused]]:
        """Who is waited for no longer, and why; whom no answer is due is the one to speak. Looks now and then."""
        if now < self._next_look:
            return []
        self._next_look = now + look_every_s(self._limits)
        found = []
        for asker in self:
            stream = asker.stream
            held = stream.held or stream.posted != stream.taken
            error = asker.patience.fault(
                asker.endpoint.missing, now, owes=asker.waiting == 0, held=held, written=stream.written
            )
            if error is not None:
                found.append((asker, error))
        return found


def offer_of(trained: TrainedRun) -> Offer:
    """What every client is told first."""
    return Offer(
        config=trained.config.to_json(),
        lower_sha256=trained.lower_sha256,
        inputs=trained.inputs,
        build=trained.build,
        torch=str(torch.__version__),
    )
