"""The command `sl-server replay`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sl_common.errors import ConfigError
from sl_common.host.commands import JsonOption
from sl_common.host.log import json_line, write_line
from sl_common.host.text import printable_lines

if TYPE_CHECKING:  # modules that import torch are imported when needed, not for --help
    from sl_common.messages.events import Logged
    from sl_common.wire.eventlog import Entry, LogReader
    from sl_server.core.outbox import Messages
    from sl_server.simulation.replay import Replayed


def replay(
    run_directory: Annotated[
        Path, typer.Argument(help="A run directory with an events.log, or that file.", metavar="RUNDIR")
    ],
    first: Annotated[
        int | None,
        typer.Option(
            "--from",
            min=1,
            help="Also print each event from this one on. Events count from 1.",
            envvar="SL_REPLAY_FROM",
        ),
    ] = None,
    until: Annotated[
        int | None,
        typer.Option(
            min=1, help="Stop after this event, and print the digest of the weights there.", envvar="SL_REPLAY_UNTIL"
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="Compute here in place of the device that the run's server used.", envvar="SL_DEVICE"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Replay a run that was recorded (run --record), and compare all messages and weights with its event log.

    Exit code 0: they agree, bit for bit. 1: the replay departs, or the log is damaged; the error names the event and
    the tensor. Computations agree between machines of one kind: the same torch, processor type and device.
    """
    from sl_server.storage.eventlog import EVENT_LOG

    if first is not None and until is not None and first > until:
        raise ConfigError(f"--from {first} comes after --until {until}")
    path = run_directory / EVENT_LOG if run_directory.is_dir() else run_directory
    if run_directory.is_dir() and not path.exists():
        raise ConfigError(f"{run_directory}: holds no {EVENT_LOG}: a run writes one with sl-server run --record")
    _replay(path, first, until, device, as_json=as_json)


def _replay(path: Path, first: int | None, until: int | None, device: str | None, *, as_json: bool) -> None:
    from sl_common.host.devices import pick_device
    from sl_server.simulation.replay import replay_log
    from sl_server.storage.eventlog import Recorded, opened_log

    with opened_log(path) as (recorded, reader):
        size = reader.length
    where = pick_device(device or recorded.device, "--device")
    here = Recorded(config="", device=where).kind
    _print(as_json, "replaying", {"log": str(path), "bytes": size, "made_by": recorded.kind})
    if here != recorded.kind:
        text = f"made by {recorded.kind}; here is {here}: the last bits may differ for that alone"
        _print(as_json, "warning", {"text": text})
    with _progress(size, shown=not as_json and first is None) as advance:

        def watch(entry: Entry, said: Messages, reader: LogReader) -> None:
            advance(reader.at)
            if first is not None and entry.number >= first:
                _print(as_json, "replayed_event", {"number": entry.number, **_about(entry.client, entry.event, said)})

        found = replay_log(path, device=where, until=until, watch=watch)
    _end(found, path, until, as_json)


def _end(found: Replayed, path: Path, until: int | None, as_json: bool) -> None:
    sha, summary = found.coordinator.weights_sha256(), _summary(path)
    stopped = until is not None and found.events == until
    if found.cut_short:
        text = f"event {found.events + 1} is cut short ({found.cut_short} bytes): the run was killed, or goes on"
        _print(as_json, "warning", {"text": text})
    ended, expected = found.coordinator.ended, summary.get("weights_sha256")
    if stopped:
        expected = None
    elif expected is not None and ended is None:  # the run was resumed without --record, or a full disk ended the log
        _print(as_json, "warning", {"text": "the log ends before the run did: what came after was not recorded"})
        expected = None
    if expected not in (None, sha):
        from sl_server.simulation.replay import Departed

        where = path.parent / "summary.json"
        raise Departed(found.events, f"the log ends with weights {sha[:16]}, {where} says {expected[:16]}")
    fields = {
        "events": found.events,
        "weights_sha256": sha,
        "finished": bool(ended and ended.finished),
        "reason": ended.reason if ended else None,
        "as_summary": None if expected is None else expected == sha,
    }
    _print(as_json, "replayed", fields)


def _print(as_json: bool, event: str, fields: dict[str, Any]) -> None:
    if as_json:
        write_line(json_line(event, "warning" if event == "warning" else "info", fields))
        return
    match event:
        case "replaying":
            text = f"replaying {fields['log']}, {fields['bytes'] / 1e6:.1f} MB, made by {fields['made_by']}"
        case "warning":
            text = f"warning: {fields['text']}"
        case "replayed":
            over = f"the run ended: {fields['reason']}" if fields["reason"] else "the run was under way"
            same = ", as in summary.json" if fields["as_summary"] else ""
            text = (
                f"replayed {fields['events']:,} events, every message and all weights agree; {over}; weights "
                f"{fields['weights_sha256'][:16]}{same}"
            )
        case _:
            who = f" {fields['client']}" if fields["client"] else ""
            said = "".join(f"\n         -> {line}" for line in fields["said"])
            text = f"{fields['number']:8,}{who} {fields['kind']} {fields['what']}{said}"
    typer.echo(printable_lines(text), err=event == "warning")


def _about(client: str, event: Logged, said: Messages) -> dict[str, Any]:
    from sl_common.messages.events import Advanced
    from sl_server.core.digests import fields_of

    what = "" if isinstance(event, Advanced) else _short(dict(fields_of(event)))
    messages = [f"{name} {type(message).__name__.lower()} {_short(dict(fields_of(message)))}" for name, message in said]
    return {"client": client, "kind": type(event).__name__.lower(), "what": what, "said": messages}


def _short(fields: dict[str, str]) -> str:
    shown = [f"{name}={value}" for name, value in fields.items()][:12]
    return " ".join([*shown, f"… {len(fields) - 12} more"] if len(fields) > 12 else shown)


def _summary(path: Path) -> dict[str, Any]:
    """Return the run's summary; empty if there is none or it has no digest."""
    try:
        found = json.loads((path.parent / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("weights_sha256"), str) else {}


@contextmanager
def _progress(total: int, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """Show a bar over the log's bytes on a terminal; yield a function that takes the number of bytes replayed."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not (shown and console.is_terminal)) as bar:
        task = bar.add_task("replaying", total=total)
        yield lambda at: bar.update(task, completed=at)
