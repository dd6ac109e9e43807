"""A client of a server that answers after a run: the lower segment and the codec run here, the head there.

One thread, no event loop. Streams may break: what was not answered is asked again on a new one.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Self

from torch import Tensor

from sl_client.inference.lower_cache import LowerCache, load_own_lower, load_shared_lower
from sl_client.inference.lower_segment import LowerSegment
from sl_client.inference.query import PendingQuery, Prediction, check_scores
from sl_client.transport.access import PLAINTEXT, Access
from sl_client.transport.connection import Connection
from sl_client.transport.stream import ClientStream, GrpcStream, StreamBroken
from sl_common import __version__
from sl_common.config.run_config import RunConfig
from sl_common.errors import WireError
from sl_common.holdings import Inputs
from sl_common.messages.inference import Fetch, Lower, Offer, Query
from sl_common.tensors import StateDict
from sl_common.wire import Hello, Timing


class PredictorTraffic:
    """Counts a predictor's bytes and warns when its stream breaks."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self.up = self.down = 0

    def moved(self, up: int, down: int) -> None:
        """Count bytes on the wire."""
        self.up, self.down = self.up + up, self.down + down

    def lost(self, why: str) -> None:
        """Warn of a broken stream."""
        self._warn(f"lost the server ({why}); asking again")

    def waiting(self, server: str, why: str) -> None:
        """Say nothing: a person is waiting, and the error at the end tells the reason."""


class Predictor:
    """One client's queries to one server. A context manager; `open` it first."""

    def __init__(
        self,
        server: str,
        *,
        access: Access = PLAINTEXT,
        name: str = "",
        shard: int | None = None,
        shards: int | None = None,
        allowed: Collection[str] | None = (),
        lower: Path | None = None,
        cache: Path | None = None,
        retry_s: float = 10.0,
        warn: Callable[[str], None] = lambda _text: None,
        device: str | None = None,
        connect: Callable[[str], ClientStream] | None = None,
    ) -> None:
        """`shard`: use the head of this shard, where clients had heads of their own.

        `lower`: a file with the lower segment, in place of the server's; `cache`: a folder for lower segments of
        servers; `device`: where to compute it, by default as the run says.
        """
        self._hello = Hello(life=secrets.token_bytes(16), client=name, shard=shard, shards=shards, software=__version__)
        self._allowed, self._device, self._warn = allowed, device, warn
        self._lower_file, self._cache = lower, None if cache is None else LowerCache(cache)
        self._traffic = PredictorTraffic(warn)
        connect = connect or partial(GrpcStream, access=access, call="Infer")
        self._connection = Connection(server, connect, call="infer", retry_s=retry_s, events=self._traffic)
        self._offer: Offer | None = None
        self._lower: LowerSegment | None = None  # together with the offer
        self._pending: deque[PendingQuery] = deque()  # by their numbers; the last one is number `_next_step` - 1
        self._next_step = 0
        self._timing: Timing | None = None  # of the last answer, sent with the next query

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> RunConfig:
        """Reach the server and get the lower segment ready; return the configuration of the run that answers.

        Raises PeerLost, Refused, WireError, Interrupted, or ConfigError if this device cannot take part.
        """
        self._connection.open(self._greet)
        return self._ready.config

    @property
    def _ready(self) -> LowerSegment:
        assert self._lower is not None, "open it first"
        return self._lower

    @property
    def device(self) -> str:
        """The device that computes the lower segment."""
        return "cpu" if self._lower is None else self._lower.device

    @property
    def bytes_up(self) -> int:
        """Bytes of serialized gRPC messages with their prefixes, after the greeting."""
        return self._traffic.up

    @property
    def bytes_down(self) -> int:
        """The same, from the server."""
        return self._traffic.down

    @property
    def inputs(self) -> Inputs | None:
        """The numbers that the run was trained on, as far as its server says."""
        return None if self._offer is None else self._offer.inputs

    @property
    def trained_on_floats(self) -> bool:
        """The run is known to have been trained on floating point numbers, which normalisation does not scale."""
        return self.inputs is not None and self.inputs.dtype != "uint8"

    def close(self) -> None:
        """End the stream."""
        self._connection.close()

    def interrupt(self) -> None:
        """Make `open` or `ask` raise Interrupted, from another thread."""
        self._connection.interrupt()

    def ask(self, batches: Iterable[Tensor], window: int | None = None) -> Iterator[Prediction]:
        """Yield the answers to normalised batches x (B, *input), B at most the run's batch size, in their order.

        `window` of them may be under way, by default and at most as many as the run allows. Raises as `open` does.
        """
        most = self._ready.config.client.window
        window = min(window or most, most)
        for x in batches:
            while len(self._pending) >= window:
                yield self._answer()
            self._ask(x)
        while self._pending:
            yield self._answer()

    # --- queries

    def _ask(self, x: Tensor) -> None:
        began = time.perf_counter()
        z = self._ready.forward(x)
        query = PendingQuery(z=z, began=began, forward_s=time.perf_counter() - began)
        self._pending.append(query)
        self._send(query)

    def _send(self, query: PendingQuery) -> None:
        timing, self._timing = self._timing, None
        query.encode_s = self._connection.session.say(Query(step=self._next_step, z=query.z), timing)
        query.sent = time.perf_counter()
        self._next_step += 1

    def _answer(self) -> Prediction:
        """Wait for the answer to the oldest query, over as many streams as it takes."""
        while True:
            self._connection.check_interrupted()
            try:
                incoming = self._connection.session.receive()
                break
            except StreamBroken as error:
                self._connection.pause_after(error)
                self._connection.open(self._greet)
        now = time.perf_counter()
        self._connection.useful = True
        step = self._next_step - len(self._pending)
        query = self._pending.popleft()
        scores = check_scores(incoming.message, step, len(query.z), self._ready.config.classes)
        self._timing = query.timing(step, incoming.at, now)
        return Prediction(scores=scores, seconds=now - query.began)

    # --- streams

    def _greet(self) -> None:
        """Greet, take the server's offer, and ask again all that is not answered."""
        self._connection.begin_session()
        session = self._connection.session
        self._next_step, self._timing = 0, None
        greeting = self._connection.greet(replace(self._hello, slow=session.slow))
        session.resume(greeting.received)
        offer = session.receive().message
        if not isinstance(offer, Offer):
            raise WireError(f"the server offers nothing, but says {type(offer).__name__}")
        if self._lower is None:
            self._lower, self._offer = self._build(offer), offer
        elif offer == self._offer:
            self._agree(self._lower)
        else:
            raise WireError("the server came back with another network: ask anew")
        for query in self._pending:
            self._send(query)

    def _agree(self, lower: LowerSegment) -> None:
        config = lower.config
        draw = config.draw_of(self._hello.shard or 0)
        endpoint = self._connection.session.endpoint
        endpoint.agree(config.infer_codec, lower.limit_bytes, draw, window=config.client.window)

    def _build(self, offer: Offer) -> LowerSegment:
        lower = LowerSegment(offer, allowed=self._allowed, device=self._device, warn=self._warn)
        self._agree(lower)
        sha256 = offer.lower_sha256
        if self._lower_file is not None:
            lower.load(load_own_lower(self._lower_file, lower.network, sha256, self._warn))
        else:
            lower.load(load_shared_lower(sha256, self._cache, self._fetch, self._warn))
        return lower

    def _fetch(self) -> StateDict:
        session = self._connection.session
        session.say(Fetch())
        message = session.receive().message
        if not isinstance(message, Lower) or message.weights.keys() != {"lower"}:
            raise WireError(f"the server sent no lower segment, but {type(message).__name__}")
        return message.weights["lower"]
