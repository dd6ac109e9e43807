"""The tables that end a run: its results, and its bytes by kind."""

from __future__ import annotations

from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from sl_common.host.progress import size
from sl_common.host.text import MAX_OURS, printable
from sl_common.wire.accounting import WIRE_KINDS


def summary_parts(summary: dict[str, Any]) -> list[RenderableType]:
    """Return the parts to print: heading, results, bytes, fingerprint.

    The fingerprint stands on its own line, so that a table's width cannot cut it.
    """
    heading = f"run {summary['name']} ({summary['preset'] or 'own protocol'}): {summary['reason']}"
    fingerprint = f"weights sha256 {summary['weights_sha256']}"
    return [
        Text(printable(heading, MAX_OURS), style="bold"),
        _results(summary),
        _bytes(summary["bytes"]),
        Text(fingerprint),
    ]


def _results(summary: dict[str, Any]) -> Table:
    table = Table(show_header=False)
    table.add_column(style="bold")
    table.add_column()
    evaluation = summary["evaluation"]
    if evaluation:
        spread = (
            "" if evaluation["shared"] else f", mean over clients ({evaluation['min']:.2%} to {evaluation['max']:.2%})"
        )
        table.add_row("accuracy", f"{evaluation['accuracy']:.2%} of {evaluation['samples']:,} held-out samples{spread}")
        table.add_row("loss, held out", f"{evaluation['loss']:.4f}")
    if summary["train_loss"] is not None:
        table.add_row("loss, last round", f"{summary['train_loss']:.4f}")
    table.add_row("time", f"{summary['seconds']:.1f} s")
    return table


def _bytes(by_direction: dict[str, dict[str, int]]) -> Table:
    table = Table()
    table.add_column("bytes", style="bold")
    for direction in by_direction:
        table.add_column(direction, justify="right")
    for kind in WIRE_KINDS:
        if any(kind in kinds for kinds in by_direction.values()):
            table.add_row(kind, *(size(kinds[kind]) if kind in kinds else "" for kinds in by_direction.values()))
    table.add_section()
    table.add_row("all", *(size(sum(kinds.values())) for kinds in by_direction.values()))
    return table
