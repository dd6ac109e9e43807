"""Prometheus metrics of a server. Bytes and queues are read when scraped; the hot path pays for step phases only.

Law: labels come from fixed lists, and so many clients as the configuration says; every series but losses and accuracies
is there from the start.
"""

from __future__ import annotations

import time
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
from sl_server.telemetry.run_series import LONG, LedgerCollector, Rounds, decades
from sl_server.telemetry.scrapes import Scrapes

PHASES = ("client_forward", "encode", "wire", "queue_wait", "server_compute", "decode", "client_backward")
REASONS = (
    *("version", "full", "shard", "identity", "revoked", "tls", "protocol", "limit", "over", "replaced", "forgotten"),
    *("headers", "crowded", "silent", "rate", "slow", "data", "model"),
)
_STEP = decades(-5, 2)  # 10 µs to 50 s: from a GPU on loopback to a Pi on a slow link
SOURCES = {
    "sl_queue_events": "Frames and events that wait for the engine",
    "sl_queue_bytes": "Bytes of frames that wait for the engine",
    "sl_waiting_batches": "Batches that wait for their cohort",
    "sl_recorded_memory_bytes": "Recorded activations in memory",
    "sl_recorded_disk_bytes": "Recorded activations on disk",
    "sl_device_memory_bytes": "Memory of GPUs that torch holds tensors in; 0 without one",
}


class _OnceKnown:
    """A gauge that is not there before its first value: a loss of 0 would be a lie."""

    def __init__(self, name: str, text: str, registry: CollectorRegistry) -> None:
        self._gauge = Gauge(name, text, registry=None)
        self._registry: CollectorRegistry | None = registry

    def set(self, value: float) -> None:
        """It is this now."""
        self._gauge.set(value)
        if self._registry is not None:
            self._registry.register(self._gauge)
            self._registry = None


class Metrics:
    """All metrics of one run, in a registry of their own."""

    def __init__(self, ledger: Ledger, config: RunConfig | None = None, device: str = "cpu") -> None:
        """`config`: the run's; by default one with nothing set."""
        config = config or RunConfig()
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        registry.register(LedgerCollector(ledger))
        self.clients = ClientSeries(config.metrics.clients)
        self.scrapes = Scrapes(self.text)
        self._rounds = Rounds(ledger, registry)
        self._rounds.planned.set(config.run.rounds)
        self._sources = {name: Gauge(name, text, registry=registry) for name, text in SOURCES.items()}
        self._wave_began: dict[str, float] = {}  # client -> when its wave did
        self._make_times(registry)
        self._make_people(registry)
        self._make_progress(registry)
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

    def _make_progress(self, registry: CollectorRegistry) -> None:
        self._loss = _OnceKnown("sl_loss", "Mean training loss of the last round", registry)
        self._batch_loss = _OnceKnown("sl_batch_loss", "Training loss of the head's last batch", registry)
        self._evaluation_loss = _OnceKnown("sl_evaluation_loss", "Mean loss on held-out data", registry)
        text = "Accuracy on held-out data, 0 to 1: of the shared network, or over clients"
        self._accuracy = Gauge("sl_accuracy", text, ("of",), registry=registry)
        self._samples = Counter("sl_samples", "Training samples that the head has learned from", registry=registry)
        self._steps = Counter("sl_steps", "Batches that the head has learned from", registry=registry)
        text = "When the run last got on: a batch trained, a wave begun or finished by a client, a round over, an evaluation"
        self._progress = Gauge("sl_progress_timestamp_seconds", text, registry=registry)
        self._progress.set_to_current_time()
        self._over = Gauge("sl_run_over", "1 when nothing more will be trained", registry=registry)

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
        text = "Clients that were lost and for which the run went back no more, since they had caused run.redo_limit rollbacks"
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
        """Where to read the gauges of SOURCES when scraped; from any thread."""
        for name, source in sources.items():
            self._sources[name].set_function(source)

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self.registry) + self.clients.text().encode()

    def observe(self, phase: str, seconds: float) -> None:
        """One phase of one step."""
        self._phases[phase].observe(max(0.0, seconds))

    def times(self, name: str, *, client: float, network: float, server: float) -> None:
        """The seconds of one whole step of one client, by place."""
        row = self.clients.row(name)
        row.timed += 1
        for place, seconds in (("client", client), ("network", network), ("server", server)):
            row.seconds[place] += seconds
        self._whole.observe(client + network + server)

    def rejected(self, reason: str) -> None:
        """A client was refused."""
        self._rejected.labels(reason if reason in REASONS else "protocol").inc()

    def connected(self, client: str, change: int) -> None:
        """A stream of a client was opened (+1), or is gone (-1)."""
        self._clients["connected"].inc(change)
        self.clients.connected(client, change)

    def away(self, change: int) -> None:
        """A client's stream broke (+1), or it is back or has left (-1)."""
        self._clients["away"].inc(change)

    def reconnected(self, client: str) -> None:
        """A session goes on over another stream."""
        self.reconnects.inc()
        self.clients.row(client).reconnects += 1

    def checkpoint(self, seconds: float | None) -> None:
        """One was made durable in so much time, or (None) could not be."""
        self._checkpoints.labels("failed" if seconds is None else "saved").inc()
        if seconds is not None:
            self._checkpoint.observe(seconds)
            self._checkpoint_at.set_to_current_time()

    def rolled_back(self) -> None:
        """Everybody goes back to the last checkpoint, and comes anew."""
        self._rollbacks.inc()
        self._clients["ready"].set(0)

    def fact(self, fact: Fact) -> None:
        """Something happened in the run."""
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
                self._over.set(1)
            case BatchEvaluated():
                self._progress.set_to_current_time()
            case Trained() | WaveBegun() | ClientDone() | RoundEnded() | Evaluated():
                self._progress.set_to_current_time()
                self._got_on(fact)
            case _:
                pass

    def _got_on(self, fact: Trained | WaveBegun | ClientDone | RoundEnded | Evaluated) -> None:
        match fact:
            case Trained(client=client, samples=samples, loss=loss):
                self._steps.inc()
                self._samples.inc(samples)
                self._batch_loss.set(loss)
                row = self.clients.row(client)
                row.steps += 1
                row.samples += samples
            case WaveBegun(clients=clients, evaluate=False):
                self._rounds.begin()
                self._wave_began = dict.fromkeys(clients, time.monotonic())
            case ClientDone(client=client, evaluate=False) if client in self._wave_began:
                self.clients.row(client).wave_s = time.monotonic() - self._wave_began[client]
            case RoundEnded(round=number, loss=mean):
                self._rounds.end(number)
                if mean is not None:
                    self._loss.set(mean)
            case Evaluated():
                self._evaluation_loss.set(fact.loss)
                for of, value in (("mean", fact.accuracy), ("min", fact.lowest), ("max", fact.highest)):
                    self._accuracy.labels(of).set(value)
                for name, score in fact.clients.items():
                    self.clients.scored(name, score.accuracy)
            case _:
                pass
