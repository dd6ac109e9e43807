"""The command `sl-server`: all its commands, in the order in which --help lists them."""

from __future__ import annotations

from typing import Annotated

import typer

from sl_common import __version__
from sl_common.host import commands
from sl_server.cli.certs import certs
from sl_server.cli.check import check, codecs, presets
from sl_server.cli.export import export
from sl_server.cli.replay import replay
from sl_server.cli.report import report
from sl_server.cli.run import run
from sl_server.cli.serve import serve
from sl_server.cli.simulate import simulate

app = typer.Typer(
    name="sl-server",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Split learning, the server's side: hold the head of a network, train it with clients that hold the rest.",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cutlayer {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options that every command has."""


@app.command()
def run(
    config_file: Annotated[
        Path | None,
        typer.Argument(help="The run's configuration, a TOML file (or a run's config.json).", metavar="RUN.toml"),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Go on with the run in this directory, from its newest checkpoint, in place of a configuration. With one: begin "
            "it there if the directory holds no run yet, and end at once if that run is over.",
            envvar="SL_RESUME",
            metavar="DIR",
        ),
    ] = None,
    listen: Listen = "127.0.0.1:50051",
    metrics: MetricsOption = None,
    out: Annotated[Path | None, typer.Option(help="Run directory; by default runs/NAME-TIME.", envvar="SL_OUT")] = None,
    overrides: Overrides = None,
    cert: ServerCertOption = None,
    key: ServerKeyOption = None,
    client_ca: ClientCa = None,
    revoked: RevokedOption = None,
    tokens: TokensOption = None,
    insecure: Plaintext = False,
    record: Annotated[
        bool,
        typer.Option(
            "--record",
            help="Also write every event to events.log, to replay the run bit for bit with sl-server replay. Holds all activations.",
            envvar="SL_RECORD",
        ),
    ] = False,
    tensorboard: TensorBoardOption = False,
    as_json: JsonOption = False,
    log_level: LogLevel = Level.INFO,
    quiet: Quiet = False,
) -> None:
    """Serve one run: wait for its clients, train, evaluate, write the run directory."""
    keep_going(as_json=as_json)
    host, port = host_port(listen, "--listen")
    at = host_port(metrics, "--metrics") if metrics else None
    from sl_server.security.credentials import make_door

    papers = {"cert": cert, "key": key, "client_ca": client_ca, "revoked": revoked, "tokens": tokens}
    door = make_door(f"{host}:{port}", **papers, insecure=insecure)
    with held_run(config_file, resume, out, overrides, record=record) as (config, where, stage):
        if stage is Stage.OVER:
            text = f"nothing to do: the run in {where} is over; {outcome(where)}"
            name_run(config.run.name)
            CommandLog("server", as_json=as_json, level=level_of(log_level, quiet=quiet)).say(
                "over", text, Level.INFO, {"text": text}
            )
            return
        from sl_server.training.process import run_server

        summary, failure, stopped = run_server(
            config,
            listen=f"{host}:{port}",
            door=door,
            metrics=at,
            out=where,
            as_json=as_json,
            level=level_of(log_level, quiet=quiet),
            record=record,
            resume=stage is Stage.BEGUN,
            tensorboard=tensorboard,
        )
    if failure is not None:
        fail(CutlayerError(failure))
    if stopped:
        raise typer.Exit(INTERRUPTED)
    if summary and not summary["finished"]:
        fail(CutlayerError(f"the run ended before its last round: {summary['reason']}"))


@app.command()
def simulate(
    config_file: ConfigFile,
    data: Annotated[Path | None, typer.Option(help="Where data sets lie.", envvar="SL_DATA")] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory; by default runs/NAME-TIME.", envvar="SL_OUT")] = None,
    overrides: Overrides = None,
    stacked: Annotated[
        Stacking,
        typer.Option(
            help="Compute all clients' lower segments as one, for runs with many clients: off; auto, if a short trial says that it "
            "is faster; on. The last bits of the weights then differ from those of the real run.",
            envvar="SL_STACKED",
        ),
    ] = Stacking.OFF,
    tensorboard: TensorBoardOption = False,
    as_json: JsonOption = False,
    log_level: LogLevel = Level.INFO,
    quiet: Quiet = False,
) -> None:
    """The same run in one process, without a network. The weights are those of the real run, bit for bit, unless stacked."""
    from sl_common.host.locks import sole_writer

    keep_going(as_json=as_json)
    config = read_config(config_file, overrides)
    name_run(config.run.name)
    where = out or new_directory(config.run.name, "-simulated")
    with sole_writer(where, "--out"):
        level = level_of(log_level, quiet=quiet)
        _simulate(config, where, data=data, stacked=stacked, tensorboard=tensorboard, as_json=as_json, level=level)


def _simulate(
    config: RunConfig,
    where: Path,
    *,
    data: Path | None,
    stacked: Stacking,
    tensorboard: bool,
    as_json: bool,
    level: Level,
) -> None:
    from sl_common.host.devices import pick_device
    from sl_server.console.show import make_server_console
    from sl_server.simulation.choice import simulation_of
    from sl_server.storage.run_directory import RunDirectory
    from sl_server.storage.tensorboard import open_board
    from sl_server.telemetry.ledger import Ledger
    from sl_server.training.recorder import RunRecorder

    ledger = Ledger()
    show = make_server_console(ledger, config.run.rounds, clients=config.run.clients, as_json=as_json, level=level)
    device = pick_device(config.server.device, "server.device", show.warn)
    clients = pick_device(config.client.device, "client.device", show.warn)
    simulation, told = simulation_of(
        config, stacked.value, data=data, device=device, client_device=clients, count=ledger.count
    )
    directory = RunDirectory(where, config, ledger, board=open_board(where) if tensorboard else None)
    show.device(device, config.server.device)
    scribe = RunRecorder(simulation.coordinator, directory, show)
    if told is not None:
        directory.notes["stacking"] = told
        show.say("stacking", told, text=told)
    for text in (*config.cautions, *simulation.coordinator.network.cautions):
        show.warn(text)
    failure: CutlayerError | KeyboardInterrupt | None = None
    show.begin()
    try:
        for fact in simulation.facts():
            scribe.fact(fact)
    except ConfigError:  # a client could not begin: no run, no summary
        directory.discard()
        raise
    except (CutlayerError, KeyboardInterrupt) as error:
        failure = error
        simulation.sessions.stop(str(error) or "stopped by its operator (SIGINT)")
    finally:
        show.stop()
    _summary, unwritten = scribe.finish()
    if isinstance(failure, CutlayerError):
        raise failure
    if unwritten is not None:
        raise CutlayerError(unwritten)
    if failure is not None:
        raise typer.Exit(INTERRUPTED)


@app.command()
def check(
    config_file: ConfigFile,
    overrides: Overrides = None,
    resolved: Annotated[
        bool, typer.Option("--resolved", help="Also print every key with its value.", envvar="SL_RESOLVED")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check a configuration without running it: shapes at every cut, bytes of a step each way, memory on the client."""
    from sl_server.preflight.check import inspect

    config = read_config(config_file, overrides)
    report = inspect(config)
    if as_json:
        typer.echo(json.dumps(report.to_dict()))
    else:
        report.show(Console(highlight=False, markup=False, soft_wrap=True), resolved=resolved)


@app.command()
def presets(as_json: JsonOption = False) -> None:
    """The published algorithms that a configuration can name."""
    from sl_server.preflight import presets as catalogue

    if as_json:
        typer.echo(json.dumps(catalogue.catalogue()))
    else:
        catalogue.show(Console(highlight=False))


@app.command()
def codecs(
    config_file: Annotated[
        Path | None,
        typer.Argument(help="A run's configuration; by default the embedded model and data.", metavar="[RUN.toml]"),
    ] = None,
    on: Annotated[
        str, typer.Option("--on", help="activation, or gradient for the cut gradient.", envvar="SL_ON")
    ] = "activation",
    data: Annotated[Path | None, typer.Option(help="Where data sets lie.", envvar="SL_DATA")] = None,
    overrides: Overrides = None,
    as_json: JsonOption = False,
) -> None:
    """What each codec makes of a real tensor of a run: bytes, ratio, error, time. → marks the configured one."""
    from sl_common.config.run_config import RunConfig
    from sl_server.preflight.codecs import compare

    if on not in ("activation", "gradient"):
        raise ConfigError(f"--on {on!r}: activation or gradient")
    config = read_config(config_file, overrides) if config_file else RunConfig.from_toml("", overrides or ())
    found = compare(config, on="gradient" if on == "gradient" else "activation", data=data)
    if as_json:
        typer.echo(json.dumps(found.to_dict()))
    else:
        found.show(Console(highlight=False, markup=False, soft_wrap=True), config)


@app.command()
def export(
    run_directory: Annotated[Path, typer.Argument(help="A run directory.", metavar="RUNDIR")],
    to: Annotated[
        Path | None,
        typer.Option("--to", "-o", help="File to write; by default RUNDIR/model.safetensors.", envvar="SL_TO"),
    ] = None,
    lower: Annotated[
        Path | None,
        typer.Option(
            help="The lower segment that a client wrote (sl-client run --save-lower FILE), where lower segments are private.",
            envvar="SL_LOWER",
        ),
    ] = None,
    head: Annotated[
        Path | None,
        typer.Option(
            help="The head to take, where every client has its own (head-SHARD.safetensors).", envvar="SL_HEAD"
        ),
    ] = None,
) -> None:
    """Join lower segment and head into the state dict of the unsplit network, as safetensors."""
    from sl_server.storage.export import export_run

    written, tensors = export_run(run_directory, to=to, lower=lower, head=head)
    typer.echo(
        f"wrote {written}: {tensors} tensors; load with safetensors.torch.load_file and nn.Sequential(OrderedDict(blocks))"
    )


app.command()(serve)
app.command()(certs)
app.command()(report)
app.command()(replay)


def main() -> None:
    """Entry point."""
    commands.run_command(app)
