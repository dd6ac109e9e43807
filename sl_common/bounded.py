"""JSON and TOML that somebody wrote, read within bounds: a configuration is small, and whoever reads one must not pay for one that is not.

Law: work and memory are proportional to the text, which has at most MAX_JSON or MAX_TOML characters; what comes out has at most MAX_ENTRIES values,
is nested MAX_DEPTH deep at most, and has no whole number of more than 64 bits.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping
from typing import Any

from sl_common.errors import ConfigError

MAX_TOML = 1 << 16  # characters
MAX_JSON = 2 * MAX_TOML  # of the same with every default spelled out
MAX_ENTRIES = 1 << 14  # values, tables and lists
MAX_DEPTH = 32
MAX_NUMBER = 2**63 - 1


def read_json(text: str) -> Any:
    """Raises ConfigError."""
    return _read(text, json.loads, MAX_JSON, "the configuration is not JSON")


def read_toml(text: str) -> dict[str, Any]:
    """Raises ConfigError."""
    found: dict[str, Any] = _read(text, tomllib.loads, MAX_TOML, "not TOML")
    return found


def _read(text: str, parse: Callable[[str], Any], most: int, wrong: str) -> Any:
    if len(text) > most:
        raise ConfigError(f"{wrong}: it has {len(text)} characters, at most {most} are allowed")
    try:
        found = parse(text)
    except RecursionError as error:
        raise ConfigError(f"{wrong}: nested more than {MAX_DEPTH} deep") from error
    except ValueError as error:
        raise ConfigError(f"{wrong}: {str(error)[:200]}") from error
    check(found)
    return found


def check(found: Any) -> None:
    """Raise ConfigError where there is too much of it, it is nested too deep, or a whole number is too large."""
    waiting: list[tuple[Any, tuple[str, ...]]] = [(found, ())]
    entries = 0
    while waiting:
        node, path = waiting.pop()
        entries += 1
        if entries > MAX_ENTRIES:
            raise ConfigError(f"more than {MAX_ENTRIES} values in a configuration")
        if len(path) > MAX_DEPTH:
            raise ConfigError(f"{_key(path[:3])}…: nested more than {MAX_DEPTH} deep")
        if isinstance(node, int) and abs(node) > MAX_NUMBER:
            raise ConfigError(f"{_key(path)}: a whole number of {node.bit_length()} bits, at most 63 are allowed")
        if isinstance(node, Mapping):
            waiting += [(value, (*path, key)) for key, value in node.items()]
        elif isinstance(node, list):
            waiting += [(value, (*path, str(number))) for number, value in enumerate(node)]


def _key(path: tuple[str, ...]) -> str:
    return ".".join(part[:40] for part in path)
