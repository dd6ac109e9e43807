"""Prometheus metrics of a server. Bytes and queues are read when scraped; the hot path pays for step phases only.

Law: labels come from fixed lists, and from as many clients as the configuration allows. Every series exists from the
start, except losses and accuracies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from sl_common import __version__
from sl_common.config.run_config import RunConfig
from sl_common.messages.facts import (
    AuxAligned,
    BatchEvaluated,
    ClientDone,
    ClientLate,
    ClientLeft,
    ClientReady,
    Evaluated,
    Fact,
    RedoSpent,
    RoundEnded,
    RunEnded,
    Trained,
    WaveBegun,
)
from sl_server.telemetry.client_series import ClientSeries
from sl_server.telemetry.ledger import Ledger
from sl_server.telemetry.names import PHASES, REASONS
from sl_server.telemetry.run_series import LONG, LedgerCollector, Rounds, decades
from sl_server.telemetry.scrapes import Scrapes
from sl_server.telemetry.training_series import TrainingSeries

_STEP = decades(-5, 2)  # 10 µs to 50 s: from a GPU on loopback to a Raspberry Pi on a slow link
SOURCES = {
    "sl_queue_events": "Frames and events that wait for the engine",
    "sl_queue_bytes": "Bytes of frames that wait for the engine",
    "sl_waiting_batches": "Batches that wait for their cohort",
    "sl_recorded_memory_bytes": "Recorded activations in memory",
    "sl_recorded_disk_bytes": "Recorded activations on disk",
    "sl_device_memory_bytes": "Memory of GPUs that torch holds tensors in; 0 without one",
}


class Metrics:
    """All metrics of one run, in their own registry."""

    def __init__(self, ledger: Ledger, config: RunConfig | None = None, device: str = "cpu") -> None:
        """`config`: the run's configuration; by default one with nothing set."""
        config = config or RunConfig()
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        registry.register(LedgerCollector(ledger))
        self.clients = ClientSeries(config.metrics.clients)
        self.scrapes = Scrapes(self.text)
        rounds = Rounds(ledger, registry)
        rounds.planned.set(config.run.rounds)
        self._sources = {name: Gauge(name, text, registry=registry) for name, text in SOURCES.items()}
        self._make_times(registry)
        self._make_people(registry)
        self._training = TrainingSeries(self.clients, rounds, registry)
        self._make_faults(registry)
        self._describe(config, device, registry)

    def _make_times(self, registry: CollectorRegistry) -> None:
        text = "One training step of one client, by phase; encode and decode are both sides' together"
        step = Histogram("sl_step_seconds", text, ("phase",), buckets=_STEP, registry=registry)
        self._phases = {phase: step.labels(phase) for phase in PHASES}
        text = "One training step of one client as it sees it, from its forward pass to the end of its backward pass"
        self._whole = Histogram("sl_whole_step_seconds", text, buckets=_STEP, registry=registry)
        text = "One alignment of one client's auxiliary network, beside the training"
        self._alignment = Histogram("sl_alignment_seconds", text, buckets=LONG, registry=registry)
        text = "Making one checkpoint durable; nothing is trained meanwhile"
        self._checkpoint = Histogram("sl_checkpoint_seconds", text, buckets=_STEP, registry=registry)

    def _make_people(self, registry: CollectorRegistry) -> None:
        text = (
            "Clients that have an open stream (connected), can train (ready), or are waited for without a stream (away)"
        )
        clients = Gauge("sl_clients", text, ("state",), registry=registry)
        self._clients = {state: clients.labels(state) for state in ("connected", "ready", "away")}
        self.reconnects = Counter("sl_reconnects", "Sessions resumed on a new stream", registry=registry)
        self._left = Counter("sl_clients_left", "Clients that left before the end", registry=registry)
        self._late = Counter("sl_late", "Waves that went on without a client that was too slow", registry=registry)

    def _make_faults(self, registry: CollectorRegistry) -> None:
        text = "Streams and clients refused, by reason"
        self._rejected = Counter("sl_rejected", text, ("reason",), registry=registry)
        text = "Pauses in reading streams that were faster than server.limits"
        self.slowed = Counter("sl_slowed_seconds", text, registry=registry)
        text = "Checkpoints by what became of them"
        self._checkpoints = Counter("sl_checkpoints", text, ("result",), registry=registry)
        text = "When the newest checkpoint of this process was made durable, 0 before the first"
        self._checkpoint_at = Gauge("sl_checkpoint_timestamp_seconds", text, registry=registry)
        text = "How often everybody went back to the last checkpoint because a client was lost"
        self._rollbacks = Counter("sl_rollbacks", text, registry=registry)
        text = (
            "Clients that were lost and for which the run went back no more, since they had caused run.redo_limit "
            "rollbacks"
        )
        self._redo_spent = Counter("sl_redo_spent", text, registry=registry)
        for reason in REASONS:
            self._rejected.labels(reason)
        for result in ("saved", "failed"):
            self._checkpoints.labels(result)

    @staticmethod
    def _describe(config: RunConfig, device: str, registry: CollectorRegistry) -> None:
        Gauge("sl_build_info", "Always 1", ("version",), registry=registry).labels(__version__).set(1)
        about = {
            "name": config.run.name,
            "preset": config.preset or "",
            "model": config.model.name,
            "data": config.data.name,
            "codec_up": config.codec.up.kind,
            "codec_down": config.codec.down.kind,
            "device": device,
        }
        Gauge("sl_run_info", "Always 1; what is run", tuple(about), registry=registry).labels(**about).set(1)
        text = "Wire bytes both ways that the run should do with, metrics.budget_mb; +Inf if none were named"
        budget = Gauge("sl_wire_budget_bytes", text, registry=registry)
        budget.set(float("inf") if config.metrics.budget_mb is None else config.metrics.budget_mb * 1e6)
        text = "Clients that the run waits for before it begins, run.clients"
        Gauge("sl_clients_wanted", text, registry=registry).set(config.run.clients)

    def watch(self, sources: Mapping[str, Callable[[], float]]) -> None:
        """Set the functions that the gauges of SOURCES call when scraped. They are called from any thread."""
        for name, source in sources.items():
            self._sources[name].set_function(source)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry) + self.clients.text().encode()

    def observe(self, phase: str, seconds: float) -> None:
        """Add the seconds of one phase of one step."""
        self._phases[phase].observe(max(0.0, seconds))

    def times(self, name: str, *, client: float, network: float, server: float) -> None:
        """Add the seconds of one whole step of one client, by place."""
        row = self.clients.row(name)
        row.timed += 1
        for place, seconds in (("client", client), ("network", network), ("server", server)):
            row.seconds[place] += seconds
        self._whole.observe(client + network + server)

    def rejected(self, reason: str) -> None:
        """Count a client that was refused."""
        self._rejected.labels(reason if reason in REASONS else "protocol").inc()

    def connected(self, client: str, change: int) -> None:
        """Record that a stream of a client was opened (+1) or closed (-1)."""
        self._clients["connected"].inc(change)
        self.clients.connected(client, change)

    def away(self, change: int) -> None:
        """Record that a client's stream broke (+1), or that the client is back or has left (-1)."""
        self._clients["away"].inc(change)

    def reconnected(self, client: str) -> None:
        """Count a session that was resumed on another stream."""
        self.reconnects.inc()
        self.clients.row(client).reconnects += 1

    def checkpoint(self, seconds: float | None) -> None:
        """Count a checkpoint, and the seconds it took to become durable; None: it could not be written."""
        self._checkpoints.labels("failed" if seconds is None else "saved").inc()
        if seconds is not None:
            self._checkpoint.observe(seconds)
            self._checkpoint_at.set_to_current_time()

    def rolled_back(self) -> None:
        """Count a rollback to the last checkpoint; all clients join again."""
        self._rollbacks.inc()
        self._clients["ready"].set(0)

    def fact(self, fact: Fact) -> None:
        """Update the metrics that this fact concerns."""
        match fact:
            case ClientReady():
                self._clients["ready"].inc()
            case ClientLeft(client=client, was_ready=was_ready):
                self._left.inc()
                self._clients["ready"].dec(int(was_ready))
                self.clients.left(client)
            case ClientLate(client=client):
                self._late.inc()
                self.clients.row(client).late += 1
            case RedoSpent():
                self._redo_spent.inc()
            case AuxAligned(took_s=seconds):
                self._alignment.observe(seconds)
            case RunEnded():
                self._clients["ready"].set(0)
                self._training.end()
            case Trained() | BatchEvaluated() | WaveBegun() | ClientDone() | RoundEnded() | Evaluated():
                self._training.fact(fact)
            case _:
                pass
