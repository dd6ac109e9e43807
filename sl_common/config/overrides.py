"""A file, `--set` and SL_SET, laid over each other and completed.

Law: the value that was written last wins, key by key.

A table whose `kind` chooses among several (a codec, an optimiser, …) may be written as that word alone. A table
without a `kind` changes keys of the table below it: the file's, the preset's, or the default. A table with another
`kind` replaces the one below it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sl_common.bounded import check_bounds, load_toml
from sl_common.errors import ConfigError

TomlTable = Mapping[str, Any]
_CLOSING = {"{": "}", "[": "]", '"': '"', "'": "'"}


def deep_merge(base: TomlTable, over: TomlTable) -> dict[str, Any]:
    """Merge key by key, with `over` above `base`; a table with another `kind` replaces the one below it."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping) and _merges(below, value):
            merged[key] = deep_merge(below, value)
        else:
            merged[key] = value
    return merged


def _merges(below: TomlTable, over: TomlTable) -> bool:
    return "kind" not in below or "kind" not in over or below["kind"] == over["kind"]


# --- unions: fields whose table has a `kind`


def spell_out(raw: TomlTable, *models: type[BaseModel]) -> dict[str, Any]:
    """Replace each word that stands for a table: `up = "float8"` becomes `up = { kind = "float8" }`.

    `models` are the possible types of the table, whose `kind` is not known yet.
    """
    done = dict(raw)
    for name, value in raw.items():
        members = list(chain.from_iterable(_members(field) for field in _fields(models, name)))
        kinds = any("kind" in member.model_fields for member in members)
        if kinds and isinstance(value, str):
            done[name] = {"kind": value}
        elif isinstance(value, Mapping):
            done[name] = spell_out(value, *members)
    return done


def complete(raw: TomlTable, model: type[BaseModel], above: str = "") -> dict[str, Any]:
    """Lay each union's table without a `kind` over the default of its field, if that has one.

    `above`: the keys that lead here, with a dot. Raises ConfigError for true and false in place of a number, which
    Python takes them for.
    """
    done = dict(raw)
    for name, value in raw.items():
        field = model.model_fields.get(name)
        if field is not None and not _members(field):
            _check_truths(f"{above}{name}", value, field)
        if field is None or not isinstance(value, Mapping):
            continue
        members = _members(field)
        kinds = {kind: member for member in members for kind in _kinds(member)}
        table: TomlTable = value
        default = field.get_default(call_default_factory=True)
        if kinds and "kind" not in table and isinstance(default, BaseModel):
            table = deep_merge(default.model_dump(mode="json"), table)
        kind = table.get("kind")
        chosen = (kinds.get(kind) if isinstance(kind, str) else None) if kinds else next(iter(members), None)
        done[name] = table if chosen is None else complete(table, chosen, f"{above}{name}.")
    return done


def _check_truths(key: str, value: Any, field: FieldInfo) -> None:
    """Raise ConfigError."""
    values = value if isinstance(value, list | tuple) else (value,)
    found = next((one for one in values if isinstance(one, bool)), None)
    if found is not None and not _takes_truths(field.annotation):
        raise ConfigError(f"{key} = {str(found).lower()}: must be neither true nor false")


def _takes_truths(annotation: Any) -> bool:
    parts = [part for part in get_args(annotation) if not isinstance(part, str | int)]  # unlike the words of a Literal
    return annotation in (bool, Any) or any(_takes_truths(part) for part in parts)


def _fields(models: tuple[type[BaseModel], ...], name: str) -> Iterator[FieldInfo]:
    return (model.model_fields[name] for model in models if name in model.model_fields)


def _members(field: FieldInfo) -> list[type[BaseModel]]:
    """Return the tables that a field may hold; none for a plain value."""
    return list(_models(field.annotation))


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _kinds(member: type[BaseModel]) -> tuple[str, ...]:
    """Return the words by which a union knows it."""
    return get_args(member.model_fields["kind"].annotation) if "kind" in member.model_fields else ()


# --- overrides that a person writes in a shell


def parse_override(text: str) -> dict[str, Any]:
    """Return the tree of one `a.b=c`: a TOML value, or a bare word. Raise ConfigError for anything else."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {text!r}: write it as key.subkey=value")
    if not text.isprintable():
        raise ConfigError(f"--set {text!r}: one key and one value on one line, without control characters")
    try:
        parsed = load_toml(f"{key} = {value}")
        if not isinstance(_leaf(parsed), str | int | float | list | Mapping):  # a date; a run may have one as its name
            parsed = load_toml(f"{key} = {json.dumps(value)}")
    except (ValueError, RecursionError) as error:
        if value.lstrip()[:1] in ("{", "["):
            raise ConfigError(
                f"--set {text[:200]!r}: {str(error)[:200]}; words within brackets stand in quotes: ['lower', 'head']"
            ) from error
        try:
            parsed = load_toml(f"{key} = {json.dumps(value)}")  # take a bare word as a string
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"--set {text[:200]!r}: {str(error)[:200]}") from error
    check_bounds(parsed)
    if not _is_one_key(key, parsed):
        raise ConfigError(f"--set {text[:200]!r}: sets another key than {key.strip()!r}; write it as key.subkey=value")
    return parsed


def split_overrides(text: str) -> list[str]:
    """Return the items of SL_SET, separated by white space outside quotes and brackets.

    A value with spaces must be in quotes (`run.name='my run'`), or the whole item. Raise ConfigError if a quote or
    bracket is not closed.
    """
    items: list[str] = []
    item, open_ = "", ""
    for place, one in enumerate(text):
        before = text[place - 1 : place]
        if open_ and one == open_[-1]:
            open_ = open_[:-1]
        elif open_[-1:] not in ('"', "'") and one in _CLOSING and (one in "{[" or not before or before in " \t\n=[{,."):
            open_ += _CLOSING[one]
        if one.isspace() and not open_:
            items.append(item)
            item = ""
        else:
            item += one
    if open_:
        raise ConfigError(
            f"SL_SET = {text[:200]!r}: {open_[-1]} is missing; items are separated by spaces, a value with spaces "
            "stands in quotes: run.rounds=3 run.name='my run'"
        )
    return [_unquoted(one) for one in [*items, item] if one]


def _unquoted(item: str) -> str:
    """Return the item without quotes around the whole of it."""
    quoted = len(item) > 1 and item[0] in "\"'" and item.find(item[0], 1) == len(item) - 1
    return item[1:-1] if quoted else item


def _leaf(parsed: Any) -> Any:
    while isinstance(parsed, Mapping) and len(parsed) == 1:
        (parsed,) = parsed.values()
    return parsed


def _is_one_key(key: str, parsed: Mapping[str, Any]) -> bool:
    """Return True if the text before the equals sign is a dotted key, and only that key was parsed."""
    try:
        node: Any = load_toml(f"{key} = 0")
        while isinstance(node, Mapping) and len(node) == 1:
            ((name, node),) = node.items()
            if not isinstance(parsed, Mapping) or parsed.keys() != {name}:
                return False
            parsed = parsed[name]
    except ValueError:
        return False
    return node == 0 and "[" not in key and "#" not in key
