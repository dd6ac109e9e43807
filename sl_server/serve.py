"""A server process: the engine's thread, gRPC on asyncio, the metrics' address, signals, and what is written and shown."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
import time
from pathlib import Path
from typing import Any

import torch

from sl_common.config import RunConfig
from sl_common.errors import ConfigError
from sl_common.facts import Evaluated, Fact, WaveBegun
from sl_common.network import Network
from sl_server import handshakes, service
from sl_server.coordinator import Coordinator
from sl_server.door import Door
from sl_server.engine import Engine
from sl_server.eventlog import EventLog
from sl_server.ledger import Ledger
from sl_server.metrics import Metrics
from sl_server.rundir import RunDirectory
from sl_server.show import Show, make_show
from sl_server.spill import DiskSpill


def pick_device(device: str) -> str:
    """`auto` is a GPU if there is one. Raises ConfigError if the one asked for is not there."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"server.device = {device!r}: torch {torch.__version__} sees no CUDA device here")
    return device


def run_server(
    config: RunConfig,
    *,
    listen: str,
    door: Door,
    metrics: tuple[str, int] | None,
    out: Path,
    as_json: bool,
    record: bool,
) -> tuple[dict[str, Any], str | None, bool]:
    """Serve one run to its end: its summary, why it failed (None if it did not), and whether a signal stopped it."""
    return asyncio.run(_serve(config, listen, door, metrics, out, as_json, record))


async def _serve(
    config: RunConfig,
    listen: str,
    door: Door,
    metrics_at: tuple[str, int] | None,
    out: Path,
    as_json: bool,
    record: bool,
) -> tuple[dict[str, Any], str | None, bool]:
    ledger = Ledger()
    metrics = Metrics(ledger)
    device = pick_device(config.server.device)
    network = Network.build(config)
    coordinator = Coordinator(config, network, device=device, spill=DiskSpill(out), alone=threading.Lock())
    directory = RunDirectory(out, config, ledger)
    show = make_show(ledger, config.run.rounds, as_json=as_json)
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    scribe = Scribe(coordinator, directory, show)
    engine = Engine(
        coordinator,
        ledger=ledger,
        metrics=metrics,
        on_fact=scribe.fact,
        on_end=lambda: _ring(loop, over),
        warn=show.warn,
    )
    log = EventLog(out / "events.log", config) if record else None
    engine.sessions.log = log
    server = None
    ears = contextlib.ExitStack()
    try:
        if door.certificates is not None:
            ears.enter_context(handshakes.heard(engine.refused))
        server, port = await service.start(engine, listen, door)
        _announce(show, f"{listen.rpartition(':')[0]}:{port}", door, config.run.clients)
        if metrics_at is not None:
            at = metrics.serve(*metrics_at)
            show.say("metrics", f"metrics at http://{metrics_at[0]}:{at}/metrics", port=at)
        for text in config.cautions:
            show.warn(text)
        stopped = _on_signals(loop, engine, show)
        engine.start()
        await over.wait()
        await server.stop(grace=2.0)
        return *scribe.finish(engine.failure), stopped.is_set()
    except ConfigError:
        directory.discard()  # it could not begin: the place is free again
        raise
    finally:
        show.stop()
        metrics.close()
        if server is not None:
            await server.stop(grace=0)
        ears.close()
        if log is not None:
            log.close()


def _announce(show: Show, address: str, door: Door, clients: int) -> None:
    text = f"listening on {address} ({door.says}), waiting for {clients} client(s)"
    show.say("listening", text, address=address, tls=door.certificates is not None)
    door.attach(show.warn)


def _ring(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    loop.call_soon_threadsafe(event.set)


def _on_signals(loop: asyncio.AbstractEventLoop, engine: Engine, show: Show) -> asyncio.Event:
    stopped = asyncio.Event()

    def stop(name: str) -> None:
        if stopped.is_set():
            raise SystemExit(130)  # the second time they mean it
        stopped.set()
        show.warn(f"{name}: ending the run; once more to leave at once")
        engine.stop(f"stopped by its operator ({name})")

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number.name)
    return stopped


class Scribe:
    """Sends each fact where it is written and shown, and keeps the run's time from the first wave on."""

    def __init__(self, coordinator: Coordinator, directory: RunDirectory, show: Show) -> None:
        self._coordinator = coordinator
        self._directory = directory
        self._show = show
        self._began: float | None = None
        self._warned = False

    @property
    def seconds(self) -> float:
        """Since the first wave began; waiting for clients does not count."""
        return 0.0 if self._began is None else time.monotonic() - self._began

    def fact(self, fact: Fact) -> None:
        """From the engine's thread. A full disk costs what could not be written, not the training."""
        if self._began is None and isinstance(fact, WaveBegun):
            self._began = time.monotonic()
        try:
            self._directory.fact(fact, self.seconds)
            if isinstance(fact, Evaluated):
                self._directory.save_weights(self._coordinator.weights())
        except OSError as error:
            if not self._warned:
                self._show.warn(f"cannot write to {self._directory.path} ({error.strerror or error}); training goes on")
            self._warned = True
        self._show.fact(fact)

    def finish(self, failure: str | None = None) -> tuple[dict[str, Any], str | None]:
        """The summary, written and shown, and why the run failed, if it did: what could not be written is a failure."""
        try:
            summary = self._directory.finish(self._coordinator, self.seconds, failure)
        except OSError as error:
            failure = (
                failure or f"the results could not be written to {self._directory.path}: {error.strerror or error}"
            )
            summary = self._directory.summary(self._coordinator, self.seconds, failure)
        self._show.summary(summary, str(self._directory.path))
        return summary, failure
