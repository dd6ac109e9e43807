"""The command `sl-server run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sl_common.exits import INTERRUPTED
from sl_common.host.commands import JsonOption, LogLevel, Quiet, level_of
from sl_common.host.log import CommandLog, Level, keep_going, name_run
from sl_server.cli.listening import listening
from sl_server.cli.options import (
    ClientCa,
    Listen,
    MetricsOption,
    Overrides,
    Plaintext,
    RevokedOption,
    ServerCertOption,
    ServerKeyOption,
    TensorBoardOption,
    TokensOption,
)
from sl_server.storage.run_selection import Stage, held_run, outcome


def run(
    config_file: Annotated[
        Path | None,
        typer.Argument(help="The run's configuration, a TOML file (or a run's config.json).", metavar="RUN.toml"),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Go on with the run in this directory, from its newest checkpoint, in place of a configuration. "
            "With one: begin it there if the directory holds no run yet, and end at once if that run is over.",
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
            help="Also write every event to events.log, to replay the run bit for bit with sl-server replay. Holds "
            "all activations.",
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
    level = level_of(log_level, quiet=quiet)
    files = {"cert": cert, "key": key, "client_ca": client_ca, "revoked": revoked, "tokens": tokens}
    here = listening(listen, metrics, files, insecure=insecure)
    with held_run(config_file, resume, out, overrides, record=record) as (config, where, stage):
        if stage is Stage.OVER:
            name_run(config.run.name)
            _say_over(where, as_json=as_json, level=level)
            return
        from sl_server.api import train

        result = train(
            config,
            where,
            listen=here.address,
            credentials=here.credentials,
            metrics=here.metrics,
            record=record,
            resume=stage is Stage.BEGUN,
            tensorboard=tensorboard,
            as_json=as_json,
            level=level,
        )
    if result.interrupted:
        raise typer.Exit(INTERRUPTED)


def _say_over(where: Path, *, as_json: bool, level: Level) -> None:
    text = f"nothing to do: the run in {where} is over; {outcome(where)}"
    CommandLog("server", as_json=as_json, level=level).say("over", text, Level.INFO, {"text": text})
