"""The server process that trains: what a run starts from, what is written and shown of it, and how it ends."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sl_common.config.run_config import RunConfig
from sl_common.errors import ConfigError, DataError
from sl_common.exits import INTERRUPTED
from sl_common.host.devices import pick_device
from sl_common.host.log import Level, name_run
from sl_common.network.network import Network
from sl_common.training.segment import Tree
from sl_server.console.show import ServerConsole, make_server_console
from sl_server.core.coordinator import Coordinator
from sl_server.core.preflight import preflight
from sl_server.process.descriptors import claim_descriptors, descriptors_for_run
from sl_server.process.harness import Harness, on_signals, run_process
from sl_server.security.credentials import Credentials
from sl_server.storage.checkpoint import Checkpoints
from sl_server.storage.eventlog import EVENT_LOG, EventLog
from sl_server.storage.run_directory import EMPTY_FILES, RunDirectory, shorter
from sl_server.storage.spill import DiskSpill
from sl_server.storage.table import Board
from sl_server.storage.tensorboard import open_board
from sl_server.telemetry.ledger import Ledger
from sl_server.telemetry.metrics import Metrics
from sl_server.training.archive import DiskArchive
from sl_server.training.engine import Engine
from sl_server.training.recorder import RunRecorder
from sl_server.training.rehearsal import rehearse

Outcome = tuple[dict[str, Any], str | None, bool]


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
) -> Outcome:
    """Serve one run to its end. Return its summary, why it failed (None if not), and whether its operator stopped it.

    `resume`: go on from the newest checkpoint in `out`, or begin anew there if it has none yet.
    """
    board = open_board(out) if tensorboard else None
    name_run(config.run.name)
    ledger = Ledger()
    show = make_server_console(ledger, config.run.rounds, clients=config.run.clients, as_json=as_json, level=level)
    options = _Options(listen=listen, door=door, metrics_at=metrics, out=out, record=record, resume=resume, board=board)
    return run_process(_serve(config, options, ledger, show))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Options:
    """The options of `sl-server run`."""

    listen: str  # HOST:PORT
    door: Credentials
    metrics_at: tuple[str, int] | None
    out: Path  # the run directory
    record: bool  # write the event log
    resume: bool
    board: Board | None  # TensorBoard, if wanted


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Start:
    """The values that a run starts from."""

    network: Network
    device: str
    name: str  # of the run, also after a restart
    checkpoints: Checkpoints
    tree: Tree | None  # the checkpoint to go on from


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Run:
    """The parts of one run's process."""

    config: RunConfig
    start: _Start
    show: ServerConsole
    harness: Harness
    metrics: Metrics
    engine: Engine
    recorder: RunRecorder
    directory: RunDirectory
    log: EventLog | None


async def _serve(config: RunConfig, options: _Options, ledger: Ledger, show: ServerConsole) -> Outcome:
    run = _assemble(config, _prepare(config, options, show), options, ledger, show)
    try:
        async with run.harness:
            try:
                return await _train(run, options)
            finally:
                show.stop()
    except ConfigError:
        if not options.resume:
            run.directory.discard()  # the run could not begin: the place is free again
        raise
    finally:
        if run.log is not None:
            run.log.close()
        run.directory.close()


def _prepare(config: RunConfig, options: _Options, show: ServerConsole) -> _Start:
    """Check everything that can fail before a file of the run is written. Raises ConfigError."""
    claim_descriptors(show, descriptors_for_run(config))
    checkpoints = Checkpoints(options.out)
    device = pick_device(config.server.device, "server.device", show.warn)
    network = Network.build(config)
    preflight(config, network)
    tree = None
    if options.resume:
        tree = checkpoints.newest(show.warn, partial(_check_fits, config, network, options.out))
    name = tree["run"] if tree else secrets.token_hex(8)
    return _Start(network=network, device=device, name=name, checkpoints=checkpoints, tree=tree)


def _assemble(config: RunConfig, start: _Start, options: _Options, ledger: Ledger, show: ServerConsole) -> _Run:
    """Build all parts of a run and go back to its checkpoint, if there is one."""
    out, device, name, tree = options.out, start.device, start.name, start.tree
    metrics = Metrics(ledger, config, device)
    spill = DiskSpill(out)
    coordinator = Coordinator(config, start.network, device=device, spill=spill, alone=threading.Lock(), run=name)
    files = tree["files"] if tree else EMPTY_FILES if options.resume else None
    directory = RunDirectory(out, config, ledger, files, options.board)
    recorder = RunRecorder(coordinator, directory, show)
    log = EventLog(out / EVENT_LOG, config, show.warn, run=name, device=device) if options.record else None
    archive = DiskArchive(start.checkpoints, directory, ledger, recorder, log)
    harness = Harness(show, options.door, metrics)
    engine = Engine(
        coordinator,
        ledger=ledger,
        metrics=metrics,
        on_fact=recorder.fact,
        on_end=harness.end,
        warn=show.warn,
        archive=archive,
    )
    if tree is not None:
        archive.resume(tree)
        engine.resume(tree)
        where = f"checkpoint {coordinator.completed_waves}" if coordinator.completed_waves else "the beginning"
        show.say("resumed", f"back to {where} of run {config.run.name!r}", checkpoint=coordinator.completed_waves)
    if log is not None:
        engine.record(log)
    return _Run(
        config=config,
        start=start,
        show=show,
        harness=harness,
        metrics=metrics,
        engine=engine,
        recorder=recorder,
        directory=directory,
        log=log,
    )


async def _train(run: _Run, options: _Options) -> Outcome:
    """Let clients in, train until the run is over, and finish its record."""
    config, show, engine = run.config, run.show, run.engine
    signals = _Signals(engine, show.warn)
    on_signals(signals.handle)  # before anybody can know of this process
    address = await run.harness.listen(engine.inbox, options.listen, "Train")
    _announce(show, address, options.door, config.run.clients)
    show.device(run.start.device, config.server.device)
    run.harness.serve_metrics(options.metrics_at, engine.health)
    for text in (*config.cautions, *run.start.network.cautions):
        show.warn(text)
    engine.start()
    show.begin()
    await run.harness.until_over()
    if engine.drained:
        out = options.out
        show.say("drained", f"stopped between two waves; go on with: sl-server run --resume {out}", out=str(out))
        return {}, None, False
    if run.log is not None and not run.log.complete:
        run.directory.notes[EVENT_LOG] = "ends early: the disk was full"
    summary, failure = run.recorder.finish(engine.failure)
    await run.metrics.scrapes.last()
    return summary, failure, signals.interrupted


class _Signals:
    """SIGINT ends the run, a second one leaves at once; any other signal stops after the wave, to be resumed."""

    def __init__(self, engine: Engine, warn: Callable[[str], None]) -> None:
        self._engine, self._warn = engine, warn
        self.interrupted = False

    def handle(self, name: str) -> None:
        """Act on a signal."""
        if name != "SIGINT":
            self._warn(
                f"{name}: finishing the wave that is under way, then stopping, to be resumed; SIGINT ends the run"
            )
            self._engine.drain()
            return
        if self.interrupted:
            raise SystemExit(INTERRUPTED)
        self.interrupted = True
        self._warn("SIGINT: ending the run; once more to leave at once. sl-server run --resume DIR would go on with it")
        self._engine.stop("stopped by its operator (SIGINT)")


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
