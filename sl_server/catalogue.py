"""The presets as `sl-server presets` shows them: for people and for programs."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sl_common.presets import PRESETS
from sl_common.protocol import Protocol

Hooks = dict[str, dict[str, Any]]


def catalogue() -> dict[str, dict[str, Any]]:
    """For --json: each preset's source, traffic, and the hooks that are not the default."""
    return {name: {"source": p.source, "traffic": p.traffic, "hooks": hooks(p.protocol)} for name, p in PRESETS.items()}


def hooks(protocol: Protocol) -> Hooks:
    """What is not the default, as it could stand under [protocol]."""
    default = Protocol()
    return {
        name: {key: value.kind for key in ("kind",) if hasattr(value, key)}
        | value.model_dump(mode="json", exclude_defaults=True)
        for name, value in protocol
        if value != getattr(default, name)
    }


def show(console: Console) -> None:
    """For people."""
    table = Table(title=Text("presets: [protocol] preset = NAME"), show_lines=True)
    table.add_column("preset")
    table.add_column("source, hooks that are not the default, traffic of one pass over the data")
    for name, row in catalogue().items():
        table.add_row(Text(name), Text(f"{row['source']}\n{_words(row['hooks'])}\n{row['traffic']}"))
    console.print(table)
    console.print(
        "|D| samples, S bytes of one smashed sample, C clients, |w| bytes of weights", markup=False, soft_wrap=True
    )


def _words(changed: Hooks) -> str:
    """waves sequential; merge average, parts lower and head."""
    phrases = []
    for hook, fields in changed.items():
        rest = [f"{k} {' and '.join(v) if isinstance(v, list) else v}" for k, v in fields.items() if k != "kind"]
        phrases.append(f"{hook} " + ", ".join([fields["kind"], *rest] if "kind" in fields else rest))
    return "; ".join(phrases) or "all defaults"
