"""The commands that measure or list without running: `sl-server check`, `presets` and `codecs`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from sl_common.errors import ConfigError
from sl_common.host.commands import JsonOption
from sl_common.host.log import write_line
from sl_server.cli.options import ConfigFile, Overrides
from sl_server.storage.run_selection import read_config


def check(
    config_file: ConfigFile,
    overrides: Overrides = None,
    resolved: Annotated[
        bool, typer.Option("--resolved", help="Also print every key with its value.", envvar="SL_RESOLVED")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check a configuration without running it: shapes at every cut, bytes of a step each way, memory on the client."""
    from sl_server import api
    from sl_server.preflight.check_text import show_report

    config = read_config(config_file, overrides)
    report = api.check(config)
    if as_json:
        write_line(json.dumps(report.to_dict()))
    else:
        show_report(Console(highlight=False, markup=False, soft_wrap=True), report, resolved=resolved)


def presets(as_json: JsonOption = False) -> None:
    """The published algorithms that a configuration can name."""
    from sl_server.preflight import presets as catalogue

    if as_json:
        write_line(json.dumps(catalogue.catalogue()))
    else:
        catalogue.show(Console(highlight=False))


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
    """Compare all codecs on a real tensor of a run: bytes, ratio, error, time. → marks the configured one."""
    from sl_common.config.run_config import RunConfig
    from sl_server.preflight.codecs import compare

    if on not in ("activation", "gradient"):
        raise ConfigError(f"--on {on!r}: activation or gradient")
    config = read_config(config_file, overrides) if config_file else RunConfig.from_toml("", overrides or ())
    found = compare(config, on="gradient" if on == "gradient" else "activation", data=data)
    if as_json:
        write_line(json.dumps(found.to_dict()))
    else:
        found.show(Console(highlight=False, markup=False, soft_wrap=True), config)
