"""The product as functions: `simulate`, `train`, `serve`, `check`, `export`. The commands of `sl-server` call these.

Each function imports its modules when called, so that `--help` loads no torch, and `check` no gRPC.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sl_common.errors import ConfigError, CutlayerError
from sl_common.host.log import Level, name_run

if TYPE_CHECKING:
    from sl_common.config.run_config import RunConfig
    from sl_server.console.show import ServerConsole
    from sl_server.inference.microbatch import MicroBatching
    from sl_server.preflight.check import CheckReport
    from sl_server.security.credentials import Credentials
    from sl_server.simulation.choice import StackedOption
    from sl_server.simulation.simulation import Simulation
    from sl_server.storage.run_directory import RunDirectory
    from sl_server.training.recorder import RunRecorder


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResult:
    """Result of a run that did not fail.

    `summary`: the content of summary.json; empty if the run was stopped between two waves, to be resumed.
    """

    summary: dict[str, Any]
    interrupted: bool  # True: its operator stopped it (SIGINT)


def simulate(
    config: RunConfig,
    out: Path,
    *,
    data: Path | None = None,
    stacked: StackedOption = "off",
    tensorboard: bool = False,
    as_json: bool = False,
    level: Level = Level.INFO,
) -> RunResult:
    """Simulate a run in this process and write its directory. Raises CutlayerError if it fails."""
    from sl_common.host.devices import pick_device
    from sl_common.host.locks import sole_writer
    from sl_server.console.show import make_server_console
    from sl_server.simulation.choice import simulation_of
    from sl_server.storage.run_directory import RunDirectory
    from sl_server.storage.tensorboard import open_board
    from sl_server.telemetry.ledger import Ledger
    from sl_server.training.recorder import RunRecorder

    with sole_writer(out, "--out"):
        ledger = Ledger()
        show = make_server_console(ledger, config.run.rounds, clients=config.run.clients, as_json=as_json, level=level)
        device = pick_device(config.server.device, "server.device", show.warn)
        clients = pick_device(config.client.device, "client.device", show.warn)
        simulation, remark = simulation_of(
            config, stacked, data=data, device=device, client_device=clients, count=ledger.count
        )
        directory = RunDirectory(out, config, ledger, board=open_board(out) if tensorboard else None)
        show.device(device, config.server.device)
        recorder = RunRecorder(simulation.coordinator, directory, show)
        if remark is not None:
            directory.notes["stacking"] = remark
            show.say("stacking", remark, text=remark)
        for text in (*config.cautions, *simulation.coordinator.network.cautions):
            show.warn(text)
        return _run_simulation(simulation, directory, recorder, show)


def _run_simulation(
    simulation: Simulation, directory: RunDirectory, recorder: RunRecorder, show: ServerConsole
) -> RunResult:
    failure: CutlayerError | KeyboardInterrupt | None = None
    show.begin()
    try:
        for fact in simulation.facts():
            recorder.fact(fact)
    except ConfigError:  # a client could not begin: no run, no summary
        directory.discard()
        raise
    except (CutlayerError, KeyboardInterrupt) as error:
        failure = error
        simulation.sessions.stop(str(error) or "stopped by its operator (SIGINT)")
    finally:
        show.stop()
    summary, unwritten = recorder.finish()
    if isinstance(failure, CutlayerError):
        raise failure
    if unwritten is not None:
        raise CutlayerError(unwritten)
    return RunResult(summary=summary, interrupted=failure is not None)


def train(
    config: RunConfig,
    out: Path,
    *,
    listen: str,
    credentials: Credentials,
    metrics: tuple[str, int] | None = None,
    record: bool = False,
    resume: bool = False,
    tensorboard: bool = False,
    as_json: bool = False,
    level: Level = Level.INFO,
) -> RunResult:
    """Serve one run to real clients and write its directory, which the caller holds (see `sl_common.host.locks`).

    Raises CutlayerError if the run fails, or ends before its last round without its operator having stopped it.
    """
    from sl_server.training.process import run_server

    summary, failure, interrupted = run_server(
        config,
        listen=listen,
        door=credentials,
        metrics=metrics,
        out=out,
        as_json=as_json,
        level=level,
        record=record,
        resume=resume,
        tensorboard=tensorboard,
    )
    if failure is not None:
        raise CutlayerError(failure)
    if summary and not interrupted and not summary["finished"]:
        raise CutlayerError(f"the run ended before its last round: {summary['reason']}")
    return RunResult(summary=summary, interrupted=interrupted)


def serve(
    run_directory: Path,
    *,
    listen: str,
    credentials: Credentials,
    batching: MicroBatching,
    metrics: tuple[str, int] | None = None,
    device: str | None = None,
    as_json: bool = False,
    level: Level = Level.INFO,
) -> bool:
    """Answer split inference with a finished run until a signal; return True if the signal was SIGINT.

    `device`: by default the one of the run's configuration. Raises CutlayerError if it fails.
    """
    from sl_common.host.devices import pick_device
    from sl_server.console.show import ServerConsole
    from sl_server.inference.process import serve_trained
    from sl_server.storage.trained import config_of, read_trained_run
    from sl_server.telemetry.ledger import Ledger

    ledger = Ledger()
    show = ServerConsole(ledger, 0, as_json=as_json, level=level)
    name_run((config := config_of(run_directory)).run.name)
    asked = device or config.server.device
    picked = pick_device(asked, "server.device" if device is None else "--device", show.warn)
    trained = read_trained_run(run_directory, show.warn, picked)
    failure, interrupted = serve_trained(
        trained,
        batching,
        listen=listen,
        door=credentials,
        metrics=metrics,
        show=show,
        device=(picked, asked),
        ledger=ledger,
    )
    if failure is not None:
        raise CutlayerError(failure)
    return interrupted


def check(config: RunConfig) -> CheckReport:
    """Try a configuration without running it. Raises ConfigError if it cannot run."""
    from sl_server.preflight.check import inspect

    return inspect(config)


def export(
    run_directory: Path, *, to: Path | None = None, lower: Path | None = None, head: Path | None = None
) -> tuple[Path, int]:
    """Write the unsplit network's state dict; return its path and the number of tensors. Raises ConfigError."""
    from sl_server.storage.export import export_run

    return export_run(run_directory, to=to, lower=lower, head=head)
