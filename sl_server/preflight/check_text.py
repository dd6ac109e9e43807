"""The report of `sl-server check` as text for people."""

from __future__ import annotations

import json
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sl_common.config.presets import PRESETS
from sl_common.config.run_config import RunConfig
from sl_common.host.progress import size
from sl_common.protocol import At, Averaged, LocalLoss
from sl_server.preflight.check import CheckReport
from sl_server.preflight.cuts import CutOption


def show_report(console: Console, report: CheckReport, *, resolved: bool) -> None:
    """Print the report. With `resolved`, every key of the configuration first."""
    config = report.config
    own = next(cut for cut in report.cuts if cut.cut == report.chosen)
    if resolved:
        console.print_json(json.dumps(config.model_dump(mode="json")))
    console.print(
        f"run {config.run.name!r}: {config.run.rounds} rounds, {config.run.clients} clients, "
        f"{config.preset or 'own protocol'}, "
        f"model {config.model.name} on {config.data.name} {config.input}, batch {config.data.batch_size}"
    )
    console.print(
        f"devices: server.device = {config.server.device} is {report.device} on this machine; client.device = "
        f"{config.client.device}" + (", a GPU where one has it" if config.client.device == "auto" else "")
    )
    console.print(_cuts_table(report))
    console.print(_traffic_table(own))
    if getattr(config.protocol.learner, "send_every", 1) > 1:
        console.print(_uploads(config))
    console.print(f"the head has {size(report.head_bytes)}")
    for line in _remarks(report, own):
        console.print(line)


def _remarks(report: CheckReport, own: CutOption) -> Iterator[str]:
    config = report.config
    if report.aligning is not None:
        yield str(report.aligning)
    if not config.protocol.timing_free:
        yield "note: barrier each on a shared head: the result depends on the order in which batches arrive"
    yield from (f"tied: {tie}" for tie in report.ties)
    yield from (f"warning: {text}" for text in (*config.cautions, *report.found))
    if isinstance(scatter := config.protocol.head.scatter, Averaged):
        yield _broadcast(scatter, own.down.wire, config.run.clients)
    if (preset := PRESETS.get(config.preset or "")) is not None:
        yield f"traffic of one pass over the data: {preset.traffic}"


def _cuts_table(report: CheckReport) -> Table:
    table = Table(title=Text(f"cuts (model.cut = {report.config.model.cut!r} is marked)"))
    for column in ("cut", "after", "smashed", "up/step", "down/step", "lower", "client memory"):
        table.add_column(column, justify="left" if column in ("after", "smashed") else "right")
    for c in report.cuts:
        mark = "→ " if c.cut == report.chosen else ""
        table.add_row(
            f"{mark}{c.cut}",
            c.after,
            str(c.shape),
            str(c.up),
            str(c.down),
            size(c.lower_bytes),
            size(c.client_memory),
        )
    return table


def _uploads(config: RunConfig) -> str:
    """Return a line about the share of a wave's batches that cross the cut."""
    learner, steps = config.protocol.learner, config.client.wave.steps
    assert isinstance(learner, LocalLoss)
    every = learner.send_every
    group = "sends nothing" if learner.skips else f"sends its {learner.upload} one"
    wave = "" if steps is None else f": {len(learner.sent(steps))} of the {steps} of a wave"
    return f"one batch of every {every} is sent{wave}; a last group of fewer than {every} {group} (learner.partial)"


def _broadcast(scatter: Averaged, down: int, clients: int) -> str:
    """Return a line with the paper's count of bytes, which assumes a broadcast; unicast streams have none."""
    sharing = len(scatter.sharing(list(range(clients)), At(seed=0)))
    messages = clients - sharing + 1 if sharing > 1 else clients
    return (
        f"{sharing} of {clients} clients share a gradient: a step sends {clients * down:,} bytes down to all of them; "
        f"with one broadcast to those that share, as the paper counts, {messages * down:,}"
    )


def _traffic_table(cut: CutOption) -> Table:
    table = Table(title=Text("one step's traffic at this cut, bytes"))
    for column in ("", "codec", "as float32", "encoded", "ratio", "on the wire"):
        table.add_column(column, justify="left" if column in ("", "codec") else "right")
    for direction, t in (("up", cut.up), ("down", cut.down)):
        if not t.plain:
            table.add_row(
                direction, "nothing crosses" if not t.wire else "a reply, no gradient", "", "", "", f"{t.wire:,}"
            )
            continue
        encoded = f"{t.encoded:,}" if t.exact else f"≈ {t.encoded:,} ({t.least:,} to {t.most:,})"
        mark = "" if t.exact else "≈ "
        table.add_row(
            direction,
            t.codec,
            f"{t.plain:,}",
            encoded,
            f"{mark}{t.plain / max(t.encoded, 1):.2f}×",
            f"{mark}{t.wire:,}",
        )
    return table
