"""Measures of each query: bytes into the ledger, phases into the metrics.

Law: nothing is counted while an answer waits for it. Counting is put off, in order, until `flush`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from sl_common.messages.training import Message
from sl_common.wire import Frame, Received, Timing
from sl_server.inference.metrics import InferMetrics
from sl_server.telemetry.ledger import Ledger

KEPT_QUERIES = 64  # answered queries of a client whose times are kept until the client sends its own


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryTimes:
    """Seconds that one query spent on the server."""

    residence: float  # from its last frame to its answer handed over
    decode: float
    encode: float


class InferMeter:
    """The measures of one server."""

    def __init__(self, ledger: Ledger, metrics: InferMetrics) -> None:
        self._ledger = ledger
        self._metrics = metrics
        self._later: list[Callable[[], object]] = []

    def received(self, received: Received) -> None:
        """Count a frame that came in, and its message if it completes one."""
        self._later += [partial(self._ledger.tally, "up", received.tally)]
        if received.message is not None:
            self._later.append(partial(self._ledger.message, "up", received.message))

    def said(self, message: Message, frames: Sequence[Frame]) -> None:
        """Count a message that was sent, with its frames."""
        self._later.append(partial(self._ledger.message, "down", message))
        self.sent(frames)

    def sent(self, frames: Sequence[Frame]) -> None:
        """Count frames that were sent."""
        self._later += [partial(self._ledger.tally, "down", frame.tally) for frame in frames]

    def computed(self, queries: int, samples: int, seconds: float) -> None:
        """Count queries that were computed together in so many seconds."""
        self._later.append(partial(self._computed, queries, samples, seconds))

    def waited(self, seconds: float) -> None:
        """Observe for how long a query waited until it was computed."""
        self._later.append(partial(self._metrics.observe, "queue_wait", seconds))

    def complete(self, times: dict[int, QueryTimes], client: Timing) -> None:
        """Observe the phases of an answered query from the client's times and ours, which leave `times`."""
        ours = times.pop(client.step, None)
        if ours is not None:
            self._later.append(partial(self._complete, ours, client))

    def flush(self) -> None:
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

    def _complete(self, ours: QueryTimes, client: Timing) -> None:
        self._metrics.observe("client_forward", client.forward)
        self._metrics.observe("encode", client.encode + ours.encode)
        self._metrics.observe("wire", client.round_trip - ours.residence)
        self._metrics.observe("decode", client.decode + ours.decode)
