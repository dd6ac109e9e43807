"""The command `sl-server simulate`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sl_common.exits import INTERRUPTED
from sl_common.host.commands import JsonOption, LogLevel, Quiet, level_of
from sl_common.host.log import Level, keep_going, name_run
from sl_server.cli.options import ConfigFile, Overrides, TensorBoardOption
from sl_server.storage.run_selection import new_directory, read_config


class Stacking(StrEnum):
    """When clients' lower segments are computed as one."""

    OFF = "off"
    AUTO = "auto"
    ON = "on"


def simulate(
    config_file: ConfigFile,
    data: Annotated[Path | None, typer.Option(help="Where data sets lie.", envvar="SL_DATA")] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory; by default runs/NAME-TIME.", envvar="SL_OUT")] = None,
    overrides: Overrides = None,
    stacked: Annotated[
        Stacking,
        typer.Option(
            help="Compute all clients' lower segments as one, for runs with many clients: off; auto, if a short "
            "trial says that it is faster; on. The last bits of the weights then differ from those of the real "
            "run.",
            envvar="SL_STACKED",
        ),
    ] = Stacking.OFF,
    tensorboard: TensorBoardOption = False,
    as_json: JsonOption = False,
    log_level: LogLevel = Level.INFO,
    quiet: Quiet = False,
) -> None:
    """The same run in one process, without a network. The weights are those of the real run, bit for bit, unless
    stacked."""
    keep_going(as_json=as_json)
    config = read_config(config_file, overrides)
    name_run(config.run.name)
    from sl_server import api

    result = api.simulate(
        config,
        out or new_directory(config.run.name, "-simulated"),
        data=data,
        stacked=stacked.value,
        tensorboard=tensorboard,
        as_json=as_json,
        level=level_of(log_level, quiet=quiet),
    )
    if result.interrupted:
        raise typer.Exit(INTERRUPTED)
