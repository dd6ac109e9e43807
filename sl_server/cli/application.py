"""The command `sl-server`: all its commands, in the order in which --help lists them."""

from __future__ import annotations

from sl_common.host import commands
from sl_server.cli.certs import certs
from sl_server.cli.check import check, codecs, presets
from sl_server.cli.export import export
from sl_server.cli.replay import replay
from sl_server.cli.report import report
from sl_server.cli.run import run
from sl_server.cli.serve import serve
from sl_server.cli.simulate import simulate

app = commands.make_app(
    "sl-server",
    "Split learning, the server's side: hold the head of a network, train it with clients that hold the rest.",
)


for _command in (run, simulate, check, presets, codecs, export, serve, certs, report, replay):
    app.command()(_command)


def main() -> None:
    """Entry point."""
    commands.run_command(app)
