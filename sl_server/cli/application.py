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


for _command in (run, simulate, check, presets, codecs, export, serve, certs, report, replay):
    app.command()(_command)


def main() -> None:
    """Entry point."""
    commands.run_command(app)
