"""The presets as `sl-server presets` prints them: for people and for programs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sl_common.config.presets import PRESETS
from sl_common.protocol import Protocol
from sl_common.value import Value

Hooks = dict[str, dict[str, Any]]


def catalogue() -> dict[str, dict[str, Any]]:
    """Return each preset's source, traffic, and non-default hooks, for --json."""
    return {name: {"source": p.source, "traffic": p.traffic, "hooks": hooks(p.protocol)} for name, p in PRESETS.items()}


def hooks(protocol: Protocol) -> Hooks:
    """Return the non-default hooks, as they could be written under [protocol]."""
    default = Protocol()
    return {name: _changed(value) for name, value in protocol if value != getattr(default, name)}


def _changed(value: Value) -> dict[str, Any]:
    """Return a value's kind and its non-default fields, recursively."""
    fields = type(value).model_fields
    own = value.model_dump(mode="json")
    return {
        name: _changed(field) if isinstance(field, Value) else own[name]
        for name, field in value
        if name == "kind" or field != fields[name].default
    }


def show(console: Console) -> None:
    """Print the presets for people."""
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
    """Return hooks as text: "waves sequential; merge average, parts lower and head"."""
    phrases = []
    for hook, fields in changed.items():
        phrases.append(f"{hook} {_phrase(fields)}")
    return "; ".join(phrases) or "all defaults"


def _phrase(fields: Mapping[str, Any]) -> str:
    rest = [f"{name} {_phrase_of(value)}" for name, value in fields.items() if name != "kind"]
    return ", ".join([fields["kind"], *rest] if "kind" in fields else rest)


def _phrase_of(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"({_phrase(value)})" if len(value) > 1 else _phrase(value)
    return " and ".join(value) if isinstance(value, list) else str(value)
