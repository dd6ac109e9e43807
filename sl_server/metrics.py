"""Prometheus metrics of a server. Bytes are read from the ledger when scraped; the hot path pays for step phases only."""

from __future__ import annotations

from collections.abc import Iterator
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from sl_common import __version__
from sl_common.errors import ConfigError
from sl_common.facts import (
    AuxAligned,
    ClientJoined,
    ClientLate,
    ClientLeft,
    ClientReady,
    Evaluated,
    Fact,
    RoundEnded,
    RunEnded,
    Trained,
)
from sl_common.messages import WIRE_KINDS
from sl_server.ledger import Ledger

PHASES = ("client_forward", "encode", "wire", "queue_wait", "server_compute", "decode", "client_backward")
REASONS = (
    *("version", "full", "shard", "identity", "revoked", "tls", "protocol", "limit", "over", "replaced", "forgotten"),
    *("headers", "crowded", "silent", "rate", "slow"),
)
_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class _LedgerCollector(Collector):
    """The ledger's counts in Prometheus' words; every combination of labels is there from the start, at 0."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def collect(self) -> Iterator[CounterMetricFamily]:
        """One family for the wire, one for the payload."""
        texts = {
            "wire": "Serialized gRPC messages and their 5-byte prefixes, resent ones included",
            "payload": "The same tensors as float32 (labels and integers at their own size), each message once",
        }
        for which, text in texts.items():
            family = CounterMetricFamily(
                f"sl_{which}_bytes", f"{text}; up is from clients to the server", labels=("direction", "kind")
            )
            counts = self._ledger.wire if which == "wire" else self._ledger.payload
            for direction in ("up", "down"):
                for kind in WIRE_KINDS:
                    family.add_metric((direction, kind), counts[direction, kind])
            yield family


class Metrics:
    """All metrics of one run, in a registry of their own."""

    def __init__(self, ledger: Ledger) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.registry.register(_LedgerCollector(ledger))
        step = Histogram(
            "sl_step_seconds",
            "One training step of one client, by phase; encode and decode are both sides' together",
            ("phase",),
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._phases = {phase: step.labels(phase) for phase in PHASES}
        self._alignment = Histogram(
            "sl_alignment_seconds",
            "One alignment of one client's auxiliary network, beside the training",
            buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500),
            registry=self.registry,
        )
        clients = Gauge("sl_clients", "Clients by state", ("state",), registry=self.registry)
        self._clients = {state: clients.labels(state) for state in ("connected", "ready", "away")}
        self._round = Gauge("sl_round", "Rounds that are over", registry=self.registry)
        self._loss = Gauge("sl_loss", "Mean training loss of the last round", registry=self.registry)
        self._accuracy = Gauge(
            "sl_accuracy",
            "Accuracy on held-out data, 0 to 1: of the shared network, or over clients",
            ("of",),
            registry=self.registry,
        )
        self._samples = Counter("sl_samples", "Training samples that the head has learned from", registry=self.registry)
        self._steps = Counter("sl_steps", "Batches that the head has learned from", registry=self.registry)
        self.reconnects = Counter("sl_reconnects", "Sessions resumed on a new stream", registry=self.registry)
        self.slowed = Counter(
            "sl_slowed_seconds",
            "Pauses in reading streams that were faster than server.limits",
            registry=self.registry,
        )
        self._left = Counter("sl_clients_left", "Clients that left before the end", registry=self.registry)
        self._late = Counter("sl_late", "Waves that went on without a client that was too slow", registry=self.registry)
        self._rejected = Counter(
            "sl_rejected", "Streams and clients refused, by reason", ("reason",), registry=self.registry
        )
        for reason in REASONS:
            self._rejected.labels(reason)
        build = Gauge("sl_build_info", "Always 1", ("version",), registry=self.registry)
        build.labels(__version__).set(1)
        self._server: WSGIServer | None = None

    def serve(self, host: str, port: int) -> int:
        """Answer scrapes at http://host:port/metrics; returns the port. Raises ConfigError if it is taken."""
        try:
            self._server, _ = start_http_server(port, host, registry=self.registry)
        except OSError as error:
            raise ConfigError(f"--metrics {host}:{port}: {error.strerror or error}") from error
        return self._server.server_port

    def close(self) -> None:
        """Stop answering."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def observe(self, phase: str, seconds: float) -> None:
        """One phase of one step."""
        self._phases[phase].observe(max(0.0, seconds))

    def rejected(self, reason: str) -> None:
        """A client was refused."""
        self._rejected.labels(reason if reason in REASONS else "protocol").inc()

    def away(self, change: int) -> None:
        """A client's stream broke (+1), or it is back or has left (-1)."""
        self._clients["away"].inc(change)

    def fact(self, fact: Fact) -> None:
        """Something happened in the run."""
        match fact:
            case ClientJoined():
                self._clients["connected"].inc()
            case ClientReady():
                self._clients["ready"].inc()
            case ClientLeft(was_ready=was_ready):
                self._left.inc()
                self._clients["connected"].dec()
                self._clients["ready"].dec(int(was_ready))
            case Trained(samples=samples):
                self._steps.inc()
                self._samples.inc(samples)
            case ClientLate():
                self._late.inc()
            case AuxAligned(took_s=seconds):
                self._alignment.observe(seconds)
            case RoundEnded(round=number, loss=loss):
                self._round.set(number + 1)
                if loss is not None:
                    self._loss.set(loss)
            case Evaluated(accuracy=mean, lowest=lowest, highest=highest):
                for of, value in (("mean", mean), ("min", lowest), ("max", highest)):
                    self._accuracy.labels(of).set(value)
            case RunEnded():
                self._clients["ready"].set(0)
            case _:
                pass
