"""Series of the run as a whole: bytes from the ledger when scraped, and the time and bytes of each round."""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from sl_common.wire.accounting import WIRE_KINDS
from sl_server.telemetry.ledger import Direction, Ledger

DIRECTIONS: tuple[Direction, ...] = ("up", "down")


def decades(first: int, last: int) -> tuple[float, ...]:
    """Return a histogram's bounds: 1, 2 and 5 times each power of ten.

    A quantile between two bounds is off by a few tens of percent at most.
    """
    return tuple(float(f"{n}e{e}") for e in range(first, last) for n in (1, 2, 5))


LONG = decades(-1, 4)  # 0.1 s to 5,000 s


class LedgerCollector(Collector):
    """Exports the ledger's counts; every combination of labels exists from the start, at 0."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Yield one family for the wire and one for the payload."""
        texts = {
            "wire": "Serialized gRPC messages and their 5-byte prefixes, resent ones included",
            "payload": "The same tensors as float32 (labels and integers at their own size), each message once",
        }
        for which, text in texts.items():
            family = CounterMetricFamily(
                f"sl_{which}_bytes", f"{text}; up is from clients to the server", labels=("direction", "kind")
            )
            counts = self._ledger.wire if which == "wire" else self._ledger.payload
            for direction in DIRECTIONS:
                for kind in WIRE_KINDS:
                    family.add_metric((direction, kind), counts[direction, kind])
            yield family


class Rounds:
    """Time and bytes of each round. The bytes of a round's evaluation count with the round after it."""

    def __init__(self, ledger: Ledger, registry: CollectorRegistry) -> None:
        self._ledger = ledger
        self._began: float | None = None
        self.over = Gauge("sl_round", "Rounds that are over", registry=registry)
        self.planned = Gauge("sl_rounds", "Rounds that the run is to have", registry=registry)
        self._seconds = Histogram(
            "sl_round_seconds", "One round, from its first wave to its merge", buckets=LONG, registry=registry
        )
        text = "between the ends of the last two rounds, or since the server's process began"
        self._bytes = {
            which: Gauge(f"sl_round_{which}_bytes", f"sl_{which}_bytes_total {text}", ("direction",), registry=registry)
            for which in ("wire", "payload")
        }
        self._before: dict[tuple[str, Direction], int] = {}
        for gauge in self._bytes.values():
            for direction in DIRECTIONS:
                gauge.labels(direction)

    def begin(self) -> None:
        """Record the begin of a training wave."""
        self._began = time.monotonic() if self._began is None else self._began

    def end(self, number: int) -> None:
        """Record the end of a round, counted from 0."""
        self.over.set(number + 1)
        if self._began is not None:
            self._seconds.observe(time.monotonic() - self._began)
        self._began = None
        for which, counts in (("wire", self._ledger.wire), ("payload", self._ledger.payload)):
            for direction in DIRECTIONS:
                now = sum(counts[direction, kind] for kind in WIRE_KINDS)
                self._bytes[which].labels(direction).set(now - self._before.get((which, direction), 0))
                self._before[which, direction] = now
