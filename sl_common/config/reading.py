"""The one way from text to a configuration.

TOML or JSON is parsed within bounds, laid over a preset and the defaults, and validated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from sl_common.bounded import check_bounds, read_json, read_toml
from sl_common.config.explain import explain
from sl_common.config.overrides import complete, deep_merge, parse_override, spell_out
from sl_common.config.presets import PRESETS
from sl_common.errors import ConfigError
from sl_common.suggestions import did_you_mean

_Config = TypeVar("_Config", bound=BaseModel)


def config_from_toml(model: type[_Config], text: str, overrides: Sequence[str] = ()) -> _Config:
    """Return the configuration of a TOML text and of `a.b=c` overrides, which win over it.

    Raise ConfigError with the key that is wrong and its closest match.
    """
    raw = spell_out(read_toml(text), model)
    over: dict[str, Any] = {}
    for override in overrides:  # merged with each other first: a kind and its keys may come in any order
        over = deep_merge(over, spell_out(parse_override(override), model))
    raw = deep_merge(raw, over)
    check_bounds(raw)
    return _validated(model, complete(_with_preset(raw), model))


def config_from_json(model: type[_Config], text: str) -> _Config:
    """Return the configuration that was written as JSON, with every key spelled out.

    Raise ConfigError with the key that is wrong.
    """
    return _validated(model, read_json(text))


def _with_preset(raw: dict[str, Any]) -> dict[str, Any]:
    """Return the raw configuration with the keys of `protocol.preset` laid below the keys that are given."""
    if "preset" in raw:
        raise ConfigError(f"preset = {raw['preset']!r}: write it under [protocol]")
    protocol = raw.get("protocol")
    if not isinstance(protocol, dict) or "preset" not in protocol:
        return raw
    name = protocol["preset"]
    if not isinstance(name, str) or name not in PRESETS:
        hint = did_you_mean(name, PRESETS)
        raise ConfigError(f"protocol.preset = {name!r}: unknown preset{hint} (known: {', '.join(PRESETS)})")
    fields = {key: value for key, value in protocol.items() if key != "preset"}
    base = PRESETS[name].protocol.model_dump(mode="json")
    return {**raw, "protocol": deep_merge(base, fields), "preset": name}


def _validated(model: type[_Config], raw: Any) -> _Config:
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(explain(error, raw, model)) from error
