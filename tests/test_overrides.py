"""`--set`, SL_SET and words for tables: what they are laid over, in which order, and what is said where they do not fit."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from sl_common.config.overrides import _kinds, _members, complete, deep_merge, parse_override, split_overrides
from sl_common.config.presets import PRESETS
from sl_common.config.run_config import RunConfig
from sl_common.errors import ConfigError

README = (Path(__file__).parent.parent / "README.md").read_text()
FIRST = re.search(r"`run.toml`[^\n]*:\n\n```toml\n(.*?)```", README, re.DOTALL)[1]  # type: ignore[index]


def at(config: RunConfig, key: str) -> Any:
    node: Any = config.model_dump(mode="json")
    for part in key.split("."):
        node = node[part]
    return node


def unions(model: type[BaseModel] = RunConfig, path: str = "") -> Iterator[tuple[str, type[BaseModel], str]]:
    """(path of the table, its model, name of the field) of every field with kinds, below every kind."""
    for name, field in model.model_fields.items():
        members = _members(field)
        if any(_kinds(member) for member in members):
            yield path, model, name
        for member in members:
            yield from unions(member, f"{path}.{name}".lstrip("."))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        # a table without a kind: keys of what is there
        (["client.optimizer.lr=0.01"], {"client.optimizer": {"kind": "sgd", "lr": 0.01, "momentum": 0.9}}),
        (["server.optimizer.nesterov=true"], {"server.optimizer": {"lr": 0.05, "momentum": 0.9, "nesterov": True}}),
        (["server.alignment.optimizer.lr=0.2"], {"server.alignment.optimizer": {"lr": 0.2}}),
        (["data.partition.alpha=5"], {"data.partition": {"kind": "dirichlet", "alpha": 5.0}}),  # the file's
        (["protocol.merge.every=3"], {"protocol.merge": {"kind": "average", "every": 3}}),  # the preset's
        (["protocol.barrier.unit=batch", "protocol.preset=splitfed_v2"], {"protocol.barrier": {"unit": "batch"}}),
        (["protocol.gate.record=7"], {"protocol.gate": {"kind": "always", "record": 7}}),
        (["client.optimizer={lr=0.3}"], {"client.optimizer": {"lr": 0.3, "momentum": 0.9}}),
        # a word: that kind
        (["codec.up=float8"], {"codec.up": {"kind": "float8", "format": "searched"}}),
        (["data.partition=own"], {"data.partition": {"kind": "own"}}),
        (["protocol.merge=keep"], {"protocol.merge": {"kind": "keep"}}),
        (["client.aux_optimizer=adamw"], {"client.aux_optimizer": {"kind": "adamw", "lr": 0.001}}),
        (["protocol.head.mix=mixup", "protocol.preset=locfedmix"], {"protocol.head.mix": {"kind": "mixup"}}),
        # a kind and its keys, in any order, also where the file or the default has another kind
        (["data.partition=shards", "data.partition.per_client=4"], {"data.partition": {"per_client": 4}}),
        (["data.partition.per_client=4", "data.partition.kind=shards"], {"data.partition": {"per_client": 4}}),
        (["codec.down.of.bits=3", "codec.down.of=uniform", "codec.down=deflate"], {"codec.down.of": {"bits": 3}}),
        (["client.optimizer=adam"], {"client.optimizer": {"kind": "adam", "lr": 0.001}}),
        (
            ["client.optimizer.kind=sgd"],
            {"client.optimizer": {"kind": "sgd", "momentum": 0.0}},
        ),  # nothing of the default
        (["codec.up={kind='mask', r=0.5}", "codec.up.b=3"], {"codec.up": {"kind": "mask", "r": 0.5, "b": 3}}),
        (
            ["codec.up=mask", "codec.up.r=0.5", "codec.up=topk", "codec.up.r=0.4"],
            {"codec.up": {"kind": "topk", "r": 0.4}},
        ),
        # plain values
        (["run.name=2026-01-01"], {"run": {"name": "2026-01-01"}}),
        (["model.cut=2", "model.args.width=4"], {"model": {"cut": 2, "args": {"width": 4}}}),
        (["server.guard.weights=off"], {"server.guard": {"weights": None}}),
        (["run.rounds=3", "run.rounds=4"], {"run": {"rounds": 4}}),
    ],
)
def test_the_readmes_file_takes_every_kind_of_override(overrides: list[str], expected: dict[str, Any]) -> None:
    config = RunConfig.from_toml(FIRST, overrides)
    for table, keys in expected.items():
        found = at(config, table)
        assert {key: found[key] for key in keys} == keys


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("codec.up.bits=4", "codec.up.bits: unknown key (known here: kind); of kind uniform it is one"),
        ("client.optimizer.betas=[0.9, 0.9]", "client.optimizer.betas: unknown key (known here: kind, lr, momentum"),
        ("client.optimizer.betas=[0.9, 0.9]", "of kind adam or adamw it is one"),
        ("codec.up=floatt8", "codec.up.kind = 'floatt8': unknown kind, did you mean 'float8'?"),
        ("codec=float8", "codec = 'float8': must be a table of keys (up, down, state)"),
        ("client.optimizer=3", "client.optimizer = 3: must be a table of keys, or one of: adam, adamw, sgd"),
        ("client.aux_optimizer.lr=3", "client.aux_optimizer.kind: missing, one of: adam, adamw, sgd"),
        ("client.schedule=step", "client.schedule.milestones: missing: kind 'step' needs it"),
        ("codec.up=mask,r=0.5", "codec.up.kind = 'mask,r=0.5': unknown kind"),
        ("run.name=5", 'run.name = 5: must be a valid string; in quotes it is one: run.name = "5"'),
        ("run.rounds=true", "run.rounds = true: must be neither true nor false"),
        ("client.optimizer.lr=false", "client.optimizer.lr = false: must be neither"),
        ("model.input=[true, 8, 8]", "model.input = true: must be neither"),
        ("codec.up=true", "codec.up = True: must be a table of keys, or one of"),
        ("run=fast", "run = 'fast': must be a table of keys (name, seed"),
    ],
)
def test_an_override_that_does_not_fit_says_what_would(override: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_toml(FIRST, [override])
    assert told in str(caught.value)


def test_true_and_false_stand_where_they_may() -> None:
    config = RunConfig.from_toml(FIRST, ["server.reply_first=false", "model.args={bias=true}"])
    assert (config.server.reply_first, config.model.args["bias"]) == (False, True)


@pytest.mark.parametrize("value", ["{kind=float8}", "[lower, head]", "{", "[1, 2"])
def test_words_within_brackets_stand_in_quotes(value: str) -> None:
    with pytest.raises(ConfigError, match=r"--set 'codec.up=.*: .*; words within brackets stand in quotes"):
        parse_override(f"codec.up={value}")


def test_a_file_may_say_words_too_and_keys_below_them() -> None:
    config = RunConfig.from_toml('codec.up = "float8"\nclient.optimizer.lr = 0.01', ["codec.up.format=e4m3"])
    assert at(config, "codec.up") == {"kind": "float8", "format": "e4m3"}
    assert at(config, "client.optimizer")["momentum"] == 0.9


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_changed_key_by_key(name: str) -> None:
    before = PRESETS[name].protocol.model_dump(mode="json")
    config = RunConfig.from_toml("", [f"protocol.preset={name}", "protocol.head.lr_power=0.5"])
    assert at(config, "protocol") == deep_merge(before, {"head": {"lr_power": 0.5}})


@pytest.mark.parametrize(("path", "model", "name"), list(unions()), ids=str)
def test_of_every_table_with_kinds_a_table_without_one_is_the_default(
    path: str, model: type[BaseModel], name: str
) -> None:
    field = model.model_fields[name]
    default = field.get_default()
    if isinstance(default, BaseModel):
        assert complete({name: {}}, model)[name] == default.model_dump(mode="json"), path


@pytest.mark.parametrize(("path", "model", "name"), list(unions()), ids=str)
def test_a_word_is_told_from_a_value_whatever_the_kind_above_it(path: str, model: type[BaseModel], name: str) -> None:
    """A kind may be written after its keys: a field of one name is a table with kinds in all members of a union, or in none."""
    members = _members(model.model_fields[name])
    for field in {field for member in members for field in member.model_fields}:
        found = {any(map(_kinds, _members(m.model_fields[field]))) for m in members if field in m.model_fields}
        assert len(found) == 1, f"{path}.{name}: {field}"


# --- the variable


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("", []),
        ("run.rounds=1 run.clients=2", ["run.rounds=1", "run.clients=2"]),
        ("  run.rounds=1\n\trun.clients=2 ", ["run.rounds=1", "run.clients=2"]),
        ("run.name='my run' run.rounds=1", ["run.name='my run'", "run.rounds=1"]),
        ('run.name="my run"', ['run.name="my run"']),
        ("'run.name=my run' run.rounds=1", ["run.name=my run", "run.rounds=1"]),
        ('"run"."name"="x"', ['"run"."name"="x"']),
        ("codec.up={kind='mask',r=0.9}", ["codec.up={kind='mask',r=0.9}"]),
        ("codec.up={ kind = 'mask', r = 0.9 } run.rounds=1", ["codec.up={ kind = 'mask', r = 0.9 }", "run.rounds=1"]),
        ("model.input=[1, 8, 8] model.classes=3", ["model.input=[1, 8, 8]", "model.classes=3"]),
        ("model.args={a=[1, {b='} x'}]} run.rounds=1", ["model.args={a=[1, {b='} x'}]}", "run.rounds=1"]),
        ("run.name=Anna's run.rounds=1", ["run.name=Anna's", "run.rounds=1"]),
        ("run.name=a]b}c run.rounds=1", ["run.name=a]b}c", "run.rounds=1"]),
    ],
)
def test_items_of_the_variable(text: str, items: list[str]) -> None:
    assert split_overrides(text) == items


@pytest.mark.parametrize("text", ["run.name='my run", "model.input=[1, 2", "codec.up={kind='mask'", "'run.rounds=3"])
def test_what_is_not_closed_in_the_variable_is_told(text: str) -> None:
    with pytest.raises(ConfigError, match=r"SL_SET = .* is missing; items are separated by spaces"):
        split_overrides(text)


def checked(tmp_path: Path, variable: str, *options: str) -> dict[str, Any]:
    (tmp_path / "run.toml").write_text(FIRST)
    command = [str(Path(sys.executable).parent / "sl-server"), "check", str(tmp_path / "run.toml"), "--json", *options]
    done = subprocess.run(command, env=os.environ | {"SL_SET": variable}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)["config"]
    return found


def test_the_variable_reaches_a_command_and_options_win_over_it(tmp_path: Path) -> None:
    found = checked(tmp_path, "run.name='my run' codec.up={ kind = 'mask', r = 0.5 } client.optimizer.lr=0.01")
    assert (found["run"]["name"], found["codec"]["up"]["r"]) == ("my run", 0.5)
    assert found["client"]["optimizer"]["momentum"] == 0.9
    assert checked(tmp_path, "run.name='my run'", "--set", "run.rounds=2")["run"]["name"] == "first"


def test_a_date_is_a_name() -> None:
    assert parse_override("run.name=07:30:00") == {"run": {"name": "07:30:00"}}
