"""The command `sl-server report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sl_common.errors import ConfigError
from sl_common.host.extras import how_to_install


def report(
    run_directories: Annotated[
        list[Path], typer.Argument(help="Run directories; several are shown side by side.", metavar="RUNDIR…")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="File to write; by default report.html in the run directory, or here if there are several.",
            envvar="SL_REPORT_OUT",
            metavar="FILE.html",
        ),
    ] = None,
) -> None:
    """One self-contained HTML page of one run or several: loss, accuracy, bytes, step phases, the clients' timeline."""
    try:
        from sl_server.report.page import make_page
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"sl-server report needs matplotlib and jinja2 ({error.name} is missing): {how_to_install('report')}"
        ) from error
    from sl_common.host.files import write_atomically

    page = make_page(run_directories)
    path = out or (run_directories[0] / "report.html" if len(run_directories) == 1 else Path("report.html"))
    try:
        write_atomically(path, page.encode())
    except OSError as error:
        raise ConfigError(f"--out {path}: {error.strerror or error}") from error
    typer.echo(f"wrote {path}: {len(page.encode()) / 1000:,.0f} kB, nothing else is needed to show it")
