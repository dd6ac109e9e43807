"""Series of what the run learns: losses, accuracy, samples, steps, rounds, and when it last made progress."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge

from sl_common.messages.facts import BatchEvaluated, ClientDone, Evaluated, RoundEnded, Trained, WaveBegun
from sl_server.telemetry.client_series import ClientSeries
from sl_server.telemetry.run_series import Rounds

ProgressFact = Trained | BatchEvaluated | WaveBegun | ClientDone | RoundEnded | Evaluated


class OptionalGauge:
    """A gauge that is exported from its first value on: a loss of 0 before any training would be wrong."""

    def __init__(self, name: str, text: str, registry: CollectorRegistry) -> None:
        self._gauge = Gauge(name, text, registry=None)
        self._registry: CollectorRegistry | None = registry

    def set(self, value: float) -> None:
        """Set the gauge, registering it on first use."""
        self._gauge.set(value)
        if self._registry is not None:
            self._registry.register(self._gauge)
            self._registry = None


class TrainingSeries:
    """Updated with each fact about progress. The engine's thread calls `fact`; a scrape reads the registry."""

    def __init__(self, clients: ClientSeries, rounds: Rounds, registry: CollectorRegistry) -> None:
        self._clients = clients
        self._rounds = rounds
        self._wave_began: dict[str, float] = {}  # client -> seconds of the monotonic clock
        self._loss = OptionalGauge("sl_loss", "Mean training loss of the last round", registry)
        self._batch_loss = OptionalGauge("sl_batch_loss", "Training loss of the head's last batch", registry)
        self._evaluation_loss = OptionalGauge("sl_evaluation_loss", "Mean loss on held-out data", registry)
        text = "Accuracy on held-out data, 0 to 1: of the shared network, or over clients"
        self._accuracy = Gauge("sl_accuracy", text, ("of",), registry=registry)
        self._samples = Counter("sl_samples", "Training samples that the head has learned from", registry=registry)
        self._steps = Counter("sl_steps", "Batches that the head has learned from", registry=registry)
        text = (
            "When the run last got on: a batch trained, a wave begun or finished by a client, a round over, an "
            "evaluation"
        )
        self._progress = Gauge("sl_progress_timestamp_seconds", text, registry=registry)
        self._progress.set_to_current_time()
        self._over = Gauge("sl_run_over", "1 when nothing more will be trained", registry=registry)

    def end(self) -> None:
        """Record that nothing more will be trained."""
        self._over.set(1)

    def fact(self, fact: ProgressFact) -> None:
        """Record progress of the run."""
        self._progress.set_to_current_time()
        match fact:
            case Trained(client=client, samples=samples, loss=loss):
                self._steps.inc()
                self._samples.inc(samples)
                self._batch_loss.set(loss)
                row = self._clients.row(client)
                row.steps += 1
                row.samples += samples
            case WaveBegun(clients=clients, evaluate=False):
                self._rounds.begin()
                self._wave_began = dict.fromkeys(clients, time.monotonic())
            case ClientDone(client=client, evaluate=False) if client in self._wave_began:
                self._clients.row(client).wave_s = time.monotonic() - self._wave_began[client]
            case RoundEnded(round=number, loss=mean):
                self._rounds.end(number)
                if mean is not None:
                    self._loss.set(mean)
            case Evaluated():
                self._evaluated(fact)
            case _:
                pass

    def _evaluated(self, fact: Evaluated) -> None:
        self._evaluation_loss.set(fact.loss)
        for of, value in (("mean", fact.accuracy), ("min", fact.lowest), ("max", fact.highest)):
            self._accuracy.labels(of).set(value)
        for name, score in fact.clients.items():
            self._clients.scored(name, score.accuracy)
