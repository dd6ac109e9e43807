"""A server process: the engine's thread, gRPC on asyncio, the metrics' address, signals, and what is written and shown."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

from sl_common.config.run_config import RunConfig
from sl_common.errors import ConfigError, DataError
from sl_common.exits import HAND_OVER_S
from sl_common.host.descriptors import Room, Shortage, cause, limit, make_room
from sl_common.host.devices import pick_device
from sl_common.host.log import Level, lost_output, name_run
from sl_common.host.signals import hang_up
from sl_common.messages.facts import BatchEvaluated, Evaluated, Fact, Trained, WaveBegun
from sl_common.network.network import Network
from sl_common.training.segment import Tree
from sl_server.console.show import ServerConsole, make_server_console
from sl_server.core.coordinator import Coordinator
from sl_server.core.preflight import preflight
from sl_server.security import handshakes
from sl_server.security.credentials import Credentials
from sl_server.security.expiry import Expiry, expose
from sl_server.storage.checkpoint import Checkpoints
from sl_server.storage.eventlog import EVENT_LOG, EventLog
from sl_server.storage.run_directory import EMPTY_FILES, RunDirectory, shorter
from sl_server.storage.spill import DiskSpill
from sl_server.storage.table import Board
from sl_server.storage.tensorboard import open_board
from sl_server.telemetry.ledger import Ledger
from sl_server.telemetry.metrics import Metrics
from sl_server.training import descriptors
from sl_server.training.engine import Engine
from sl_server.training.rehearsal import rehearse
from sl_server.transport import service


def run_server(
    config: RunConfig,
    *,
    listen: str,
    door: Credentials,
    metrics: tuple[str, int] | None,
    out: Path,
    as_json: bool,
    record: bool,
    resume: bool = False,
    tensorboard: bool = False,
    level: Level = Level.INFO,
) -> tuple[dict[str, Any], str | None, bool]:
    """Serve one run to its end: its summary, why it failed (None if it did not), and whether its operator stopped it.

    `resume`: go on from the newest checkpoint in `out`, or begin anew there if it has none yet.
    """
    sys.setswitchinterval(HAND_OVER_S)
    board = open_board(out) if tensorboard else None
    name_run(config.run.name)
    ledger = Ledger()
    show = make_server_console(ledger, config.run.rounds, clients=config.run.clients, as_json=as_json, level=level)
    return asyncio.run(_serve(config, listen, door, metrics, out, ledger, show, record, resume, board))


async def _serve(
    config: RunConfig,
    listen: str,
    door: Credentials,
    metrics_at: tuple[str, int] | None,
    out: Path,
    ledger: Ledger,
    show: ServerConsole,
    record: bool,
    resume: bool,
    board: Board | None,
) -> tuple[dict[str, Any], str | None, bool]:
    say_room(show, descriptors.descriptors_for_run(config))
    checkpoints = Checkpoints(out)
    device = pick_device(config.server.device, "server.device", show.warn)
    network = Network.build(config)
    preflight(config, network)
    tree = checkpoints.newest(show.warn, partial(_check_fits, config, network, out)) if resume else None
    run = tree["run"] if tree else secrets.token_hex(8)
    metrics = Metrics(ledger, config, device)
    coordinator = Coordinator(config, network, device=device, spill=DiskSpill(out), alone=threading.Lock(), run=run)
    directory = RunDirectory(out, config, ledger, tree["files"] if tree else EMPTY_FILES if resume else None, board)
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    scribe = RunRecorder(coordinator, directory, show)
    log = EventLog(out / EVENT_LOG, config, show.warn, run=run, device=device) if record else None
    archive = DiskArchive(checkpoints, directory, ledger, scribe, log)
    engine = Engine(
        coordinator,
        ledger=ledger,
        metrics=metrics,
        on_fact=scribe.fact,
        on_end=lambda: _ring(loop, over),
        warn=show.warn,
        archive=archive,
    )
    if tree is not None:
        archive.resume(tree)
        engine.resume(tree)
        where = f"checkpoint {coordinator.completed_waves}" if coordinator.completed_waves else "the beginning"
        show.say("resumed", f"back to {where} of run {config.run.name!r}", checkpoint=coordinator.completed_waves)
    engine.sessions.log = log
    server = None
    ears = contextlib.ExitStack()
    shortage = Shortage(show.warn)
    expose(metrics.registry, door.certificates)
    watchers = [descriptors.watch_descriptors(shortage), Expiry(door.certificates, show.warn).watch()]
    tasks = [asyncio.create_task(one) for one in watchers]
    try:
        ears.enter_context(handshakes.heard(engine.refused, shortage.met))
        stopped = _on_signals(loop, engine, show)  # before anybody can know of this process
        server, port = await service.start(engine, listen, door)
        _announce(show, f"{listen.rpartition(':')[0]}:{port}", door, config.run.clients)
        show.device(device, config.server.device)
        if metrics_at is not None:
            at = metrics.scrapes.serve(*metrics_at, engine.health)
            show.say("metrics", f"metrics at http://{metrics_at[0]}:{at}/metrics", port=at)
        for text in (*config.cautions, *network.cautions):
            show.warn(text)
        engine.start()
        show.begin()
        await over.wait()
        await server.stop(grace=2.0)
        if engine.drained:
            show.say("drained", f"stopped between two waves; go on with: sl-server run --resume {out}", out=str(out))
            return {}, None, False
        if log is not None and not log.complete:
            directory.notes[EVENT_LOG] = "ends early: the disk was full"
        summary, failure = scribe.finish(engine.failure)
        await metrics.scrapes.last()
        return summary, failure, stopped.is_set()
    except ConfigError:
        if not resume:
            directory.discard()  # it could not begin: the place is free again
        raise
    finally:
        show.stop()
        for task in tasks:
            task.cancel()
        metrics.scrapes.close()
        if server is not None:
            await server.stop(grace=0)
        ears.close()
        if log is not None:
            log.close()
        directory.close()


def say_room(show: ServerConsole, room: Room) -> None:
    """Have as many descriptors as are needed, and say what was done for it. Raises ConfigError where that is impossible."""
    text = make_room(room)
    if text is not None:
        show.say("descriptors", text, text=text, least=room.least, wanted=room.wanted, limit=limit())


def _check_fits(config: RunConfig, network: Network, out: Path, tree: Tree) -> None:
    """Raise DataError unless the run in `out` can go on from a checkpoint."""
    try:
        reason = shorter(out, tree["files"])
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"a checkpoint that does not say how long the run's files were: {error!r:.200}") from error
    if reason is not None:
        raise DataError(reason)
    rehearse(tree, network, Coordinator(config, Network.build(config)))


def _announce(show: ServerConsole, address: str, door: Credentials, clients: int) -> None:
    text = f"listening on {address} ({door.says}), waiting for {clients} client(s)"
    show.say("listening", text, address=address, tls=door.certificates is not None)
    door.attach(show.warn)


def _ring(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    loop.call_soon_threadsafe(event.set)


def _on_signals(loop: asyncio.AbstractEventLoop, engine: Engine, show: ServerConsole) -> asyncio.Event:
    stopped = asyncio.Event()

    def stop() -> None:
        if stopped.is_set():
            raise SystemExit(130)  # the second time they mean it
        stopped.set()
        show.warn("SIGINT: ending the run; once more to leave at once. sl-server run --resume DIR would go on with it")
        engine.stop("stopped by its operator (SIGINT)")

    def drain(name: str) -> None:
        show.warn(f"{name}: finishing the wave that is under way, then stopping, to be resumed; SIGINT ends the run")
        engine.drain()

    loop.add_signal_handler(signal.SIGINT, stop)
    for number in (signal.SIGTERM, *hang_up()):
        loop.add_signal_handler(number, drain, number.name)
    return stopped


class DiskArchive:
    """A run's checkpoints, and how far its other files were written when the last one was made."""

    def __init__(
        self,
        checkpoints: Checkpoints,
        directory: RunDirectory,
        ledger: Ledger,
        scribe: RunRecorder,
        log: EventLog | None = None,
    ) -> None:
        self._checkpoints, self._directory, self._ledger, self._scribe = checkpoints, directory, ledger, scribe
        self._log = log
        self._files = dict(EMPTY_FILES)

    def save(self, number: int, tree: Tree) -> None:
        """Durable when it returns, and before it all that it counts on; raises OSError."""
        files = self._directory.written()
        if self._log is not None:
            self._log.sync()
        extra = {"files": files, "ledger": self._ledger.snapshot(), "seconds": self._scribe.seconds}
        self._checkpoints.save(number, tree | extra)
        self._files = files

    def back(self) -> None:
        """What was written since the last checkpoint never happened."""
        self._directory.cut_back(self._files)

    def resume(self, tree: Tree) -> None:
        """Take up a checkpoint that a former process made. Raises ConfigError."""
        self._checkpoints.forget_newer()
        self._files = tree["files"]
        self._ledger.restore(tree["ledger"])
        self._scribe.resume(tree["seconds"])


class RunRecorder:
    """Sends each fact where it is written and shown, and keeps the run's time from the first wave on."""

    def __init__(self, coordinator: Coordinator, directory: RunDirectory, show: ServerConsole) -> None:
        self._coordinator = coordinator
        self._directory = directory
        self._show = show
        self._began: float | None = None
        self._before = 0.0  # in processes before this one
        self._warned = False
        self._unheard = False

    def resume(self, seconds: float) -> None:
        """The run has taken so long already."""
        self._before = seconds

    @property
    def seconds(self) -> float:
        """Since the first wave began; waiting for clients does not count."""
        return self._before + (0.0 if self._began is None else time.monotonic() - self._began)

    def fact(self, fact: Fact) -> None:
        """From the engine's thread. A full disk costs no training; what it does not take is kept, and written when it does."""
        if self._began is None and isinstance(fact, WaveBegun):
            self._began = time.monotonic()
        if not isinstance(fact, Trained | BatchEvaluated):
            self._look_at_output()
        try:
            self._directory.fact(fact, self.seconds)
            if isinstance(fact, Evaluated):
                self._directory.save_weights(self._coordinator.weights(), self._coordinator.agreement.inputs)
        except OSError as error:
            if not self._warned:
                self._show.warn(
                    f"cannot write to {self._directory.path} ({cause(error)}); training goes on, lines are kept in "
                    "memory and written when that is possible"
                )
            self._warned = True
        if self._warned and not self._directory.behind:
            self._warned = False
            text = f"{self._directory.path} can be written again, and holds what was kept"
            self._show.say("written", text, text=text)
        self._show.fact(fact)

    def _look_at_output(self) -> None:
        """Nobody may read standard output any more: the run directory says so too."""
        lost = lost_output()
        if lost is None:
            return
        self._directory.notes["lost_output"] = lost
        if not self._unheard:
            self._directory.warn(f"what this process says is not heard any more: {lost}", self.seconds)
        self._unheard = True

    def finish(self, failure: str | None = None) -> tuple[dict[str, Any], str | None]:
        """The summary, written and shown, and why the run failed, if it did: what could not be written is a failure."""
        self._look_at_output()
        try:
            summary = self._directory.finish(self._coordinator, self.seconds, failure)
        except OSError as error:
            failure = failure or f"the results could not be written to {self._directory.path}: {cause(error)}"
            summary = self._directory.summary(self._coordinator, self.seconds, failure)
        self._show.summary(summary, str(self._directory.path))
        return summary, failure
