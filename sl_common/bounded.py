"""JSON and TOML, read within bounds: a configuration may come from another machine, and each key of it costs work.

Law: work and memory are proportional to the text, which has at most MAX_JSON or MAX_TOML characters; the result has a
bounded number of values, none of them too deep, long or large.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sl_common.errors import ConfigError

MAX_TOML = 1 << 16  # characters
MAX_JSON = 2 * MAX_TOML  # characters; every default is spelled out there
MAX_VALUES = 1 << 14  # values, tables and lists in total
MAX_ENTRIES = 1024  # entries of one list or table: layers, milestones, keys
MAX_DEPTH = 16
MAX_TEXT = 4096  # characters of one text
MAX_COUNT = 1 << 40  # bound on any count by a peer or a file that has no other bound
MAX_NUMBER = 1 << 63  # torch and the wire cannot represent larger numbers
MAX_PARTS = 64  # parts of a dotted key; tomllib's time grows with the square of their number
_PART = r"""(?:[A-Za-z0-9_-]++|"[^"\n]*+"|'[^'\n]*+')"""
_DOTTED = re.compile(rf"(?<![A-Za-z0-9_-])(?:{_PART}[ \t]*+\.[ \t]*+)++")  # possessive: reads each character once
_PARTS = re.compile(_PART)


def read_json(text: str) -> Any:
    """Return a parsed JSON configuration. Raise ConfigError if it is none or exceeds a bound."""
    return _read(text, json.loads, MAX_JSON, "the configuration is not JSON")


def read_toml(text: str) -> dict[str, Any]:
    """Return a parsed TOML configuration. Raise ConfigError if it is none or exceeds a bound."""
    found: dict[str, Any] = _read(text, load_toml, MAX_TOML, "not TOML")
    return found


def load_toml(text: str) -> dict[str, Any]:
    """Parse as `tomllib.loads` does, in time proportional to the text. Raise ValueError or RecursionError."""
    for dotted in _DOTTED.finditer(text):
        if len(_PARTS.findall(dotted[0])) > MAX_PARTS:
            raise ValueError(f"a key of more than {MAX_PARTS} parts")
    return tomllib.loads(text)


def _read(text: str, parse: Callable[[str], Any], most: int, wrong: str) -> Any:
    if len(text) > most:
        raise ConfigError(f"{wrong}: it has {len(text)} characters, at most {most} are allowed")
    try:
        found = parse(text)
    except RecursionError as error:
        raise ConfigError(f"{wrong}: nested more than {MAX_DEPTH} deep") from error
    except ValueError as error:
        raise ConfigError(f"{wrong}: {str(error)[:200]}") from error
    check_bounds(found)
    return found


def check_bounds(found: Any) -> None:
    """Raise ConfigError with the key of a value that is too deep, long or large, or if there are too many values."""
    waiting: list[tuple[Any, str, int]] = [(found, "", 0)]
    values = 0
    while waiting:
        node, key, depth = waiting.pop()
        values += 1
        if values > MAX_VALUES:
            raise ConfigError(f"more than {MAX_VALUES} values in a configuration")
        _check_one(node, key, depth)
        below: Iterable[tuple[Any, Any]] = ()
        if isinstance(node, Mapping):
            below = node.items()
        elif isinstance(node, list | tuple):
            below = enumerate(node)
        waiting += [(value, f"{key}.{name!s:.40}".lstrip("."), depth + 1) for name, value in below]


def _check_one(node: Any, key: str, depth: int) -> None:
    shown = key if key.isprintable() else repr(key)
    if depth > MAX_DEPTH:
        raise ConfigError(f"{shown:.80}…: nested more than {MAX_DEPTH} deep")
    if isinstance(node, Mapping | list | tuple) and len(node) > MAX_ENTRIES:
        raise ConfigError(f"{shown}: {len(node)} entries, at most {MAX_ENTRIES} are allowed")
    if isinstance(node, str) and len(node) > MAX_TEXT:
        raise ConfigError(f"{shown}: {len(node)} characters, at most {MAX_TEXT} are allowed")
    if isinstance(node, int) and not -MAX_NUMBER <= node < MAX_NUMBER:
        raise ConfigError(f"{shown}: a whole number of {node.bit_length()} bits, at most 63 are allowed")
