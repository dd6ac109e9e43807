"""Clients that ask a trained network: who is let in, and what it may ask. It knows no thread and no clock."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from sl_common.errors import Refused
from sl_common.inference import Fetch, Lower, Offer, Query
from sl_common.wire import Endpoint, Hello
from sl_server.engine import Stream
from sl_server.identity import Identity, admit
from sl_server.infer_meter import Spent
from sl_server.trained import Trained


@dataclass(kw_only=True, slots=True, eq=False)
class Asker:
    """One client on one stream; with the stream it is forgotten."""

    client: str  # its name; may be empty where nobody asks for a proof
    head: int | None  # which one answers it
    trained: Trained
    stream: Stream
    endpoint: Endpoint
    waiting: int = 0  # queries that are to be answered
    unheard: deque[int] = field(default_factory=deque)  # last frames of answers that it has not acknowledged
    fetched: bool = False
    spent: dict[int, Spent] = field(default_factory=dict)  # on its last queries, by their number

    def check(self, query: Query) -> None:
        """Raises WireError or Refused if this is no query of this run, or one too many.

        Answers that a client does not read count as under way: they lie in our memory.
        """
        self.trained.network.check_query(query.z)
        while self.unheard and self.unheard[0] <= self.endpoint.acknowledged:
            self.unheard.popleft()
        window = self.trained.config.client.window
        if self.waiting + len(self.unheard) >= window:
            raise Refused("limit", f"more than client.window = {window} queries under way")

    def hand_out(self, _fetch: Fetch) -> Lower:
        """The lower segment, once. Raises Refused."""
        if self.trained.lower is None:
            raise Refused("protocol", "the lower segments of this run are its clients' own: this server has none")
        if self.fetched:
            raise Refused("limit", "the lower segment is sent once on a stream")
        self.fetched = True
        return Lower(weights={"lower": self.trained.lower})


def let_in(trained: Trained, stream: Stream, hello: Hello, identity: Identity) -> Asker:
    """Whom a stream is from, as far as its transport proves it. Raises Refused."""
    hello.check_version()
    name = admit(hello.client, identity)
    head = trained.head_of(hello.shard, hello.shards)
    config = trained.config
    endpoint = Endpoint("server", link=config.infer_codec, limit_bytes=trained.network.limit_bytes, call="infer")
    return Asker(client=name, head=head, trained=trained, stream=stream, endpoint=endpoint)


def offer_of(trained: Trained) -> Offer:
    """What every client is told first."""
    return Offer(config=trained.config.to_json(), lower_sha256=trained.lower_sha256)
