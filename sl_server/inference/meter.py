"""What is measured of each query: bytes into the ledger, phases into the metrics.

Law: nothing is counted while an answer waits for it. Counting is put off, in order, until `settle`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from sl_common.messages.training import Message
from sl_common.wire import Frame, Received, Timing
from sl_server.inference.metrics import InferMetrics
from sl_server.telemetry.ledger import Ledger

KEPT_QUERIES = 64  # queries of a client whose own measures may still come


@dataclass(frozen=True, kw_only=True, slots=True)
class Spent:
    """Seconds of one query on the server."""

    residence: float  # from its last frame to its answer handed over
    decode: float
    encode: float


class InferMeter:
    """Counts for one server."""

    def __init__(self, ledger: Ledger, metrics: InferMetrics) -> None:
        self._ledger = ledger
        self._metrics = metrics
        self._later: list[Callable[[], object]] = []

    def came(self, received: Received) -> None:
        """A frame came in."""
        self._later += [partial(self._ledger.tally, "up", received.tally)]
        if received.message is not None:
            self._later.append(partial(self._ledger.message, "up", received.message))

    def said(self, message: Message, frames: Sequence[Frame]) -> None:
        """A message went out."""
        self._later.append(partial(self._ledger.message, "down", message))
        self.sent(frames)

    def sent(self, frames: Sequence[Frame]) -> None:
        """Frames went out."""
        self._later += [partial(self._ledger.tally, "down", frame.tally) for frame in frames]

    def computed(self, queries: int, samples: int, seconds: float) -> None:
        """So many went through the head together."""
        self._later.append(partial(self._computed, queries, samples, seconds))

    def waited(self, seconds: float) -> None:
        """A query did, until the head began."""
        self._later.append(partial(self._metrics.observe, "queue_wait", seconds))

    def complete(self, spent: dict[int, Spent], client: Timing) -> None:
        """A client's measures of an answered query complete ours of the same one, in `spent`."""
        ours = spent.pop(client.step, None)
        if ours is not None:
            self._later.append(partial(self._complete, ours, client))

    def settle(self) -> None:
        """Count what was put off."""
        later, self._later = self._later, []
        for count in later:
            count()

    def _computed(self, queries: int, samples: int, seconds: float) -> None:
        self._metrics.batch_size.observe(samples)
        self._metrics.requests.inc(queries)
        self._metrics.samples.inc(samples)
        for _ in range(queries):
            self._metrics.observe("server_compute", seconds)

    def _complete(self, ours: Spent, client: Timing) -> None:
        self._metrics.observe("client_forward", client.forward)
        self._metrics.observe("encode", client.encode + ours.encode)
        self._metrics.observe("wire", client.round_trip - ours.residence)
        self._metrics.observe("decode", client.decode + ours.decode)
