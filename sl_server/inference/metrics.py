"""Prometheus metrics of a server that answers after a run."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from sl_common import __version__
from sl_server.telemetry.ledger import Ledger
from sl_server.telemetry.names import REASONS
from sl_server.telemetry.run_series import LedgerCollector
from sl_server.telemetry.scrapes import Scrapes

QUERY_PHASES = ("client_forward", "encode", "wire", "decode", "queue_wait", "server_compute")
_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1, 2, 4, 8)


class InferMetrics:
    """The metrics of one server, in a registry of their own without those of training."""

    def __init__(self, ledger: Ledger) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.registry.register(LedgerCollector(ledger))
        seconds = Histogram(
            "sl_infer_seconds",
            "One query by phase; encode and decode are both sides' together, queue_wait includes waiting for others to "
            "compute with",
            ("phase",),
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._phases = {phase: seconds.labels(phase) for phase in QUERY_PHASES}
        self.batch_size = Histogram(
            "sl_infer_batch_size",
            "Samples that went through the head at once",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
            registry=self.registry,
        )
        self.requests = Counter("sl_infer_requests", "Queries answered", registry=self.registry)
        self.samples = Counter("sl_infer_samples", "Samples in them", registry=self.registry)
        clients = Gauge("sl_clients", "Clients by state", ("state",), registry=self.registry)
        self.connected = clients.labels("connected")
        self._rejected = Counter("sl_rejected", "Streams refused, by reason", ("reason",), registry=self.registry)
        text = "Pauses in reading streams that were faster than server.limits"
        self.slowed = Counter("sl_slowed_seconds", text, registry=self.registry)
        for reason in REASONS:
            self._rejected.labels(reason)
        Gauge("sl_build_info", "Always 1", ("version",), registry=self.registry).labels(__version__).set(1)
        self.scrapes = Scrapes(self.text)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def observe(self, phase: str, seconds: float) -> None:
        """Observe the seconds of one phase of one query."""
        self._phases[phase].observe(max(0.0, seconds))

    def rejected(self, reason: str) -> None:
        """Count a client that was refused."""
        self._rejected.labels(reason if reason in REASONS else "protocol").inc()
