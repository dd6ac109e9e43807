"""`sl-server replay`: a recorded run computed again, compared entry by entry, and where the two part."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import ran
from recorded import LENGTHS
from typer.testing import CliRunner
from world import World, make_config

from sl_common.config.presets import PRESETS
from sl_common.config.run_config import RunConfig
from sl_common.errors import ConfigError, Diverged
from sl_common.messages.events import Advanced, Failed, Logged, Stopped
from sl_common.messages.training import Smashed
from sl_common.network.network import Network
from sl_common.wire import eventlog
from sl_server.cli.application import app
from sl_server.core.coordinator import Coordinator
from sl_server.simulation.replay import Departed, replay_events, replay_log
from sl_server.storage import eventlog as log_file
from sl_server.storage.eventlog import EventLog

Entries = list[tuple[str, Logged]]


def recorded_world(preset: str = "splitfed_v1", **overrides: object) -> World:
    world = World(make_config(preset, **overrides))
    for _ in range(3):
        world.join()
    return world.run()


def write_log(path: Path, config: RunConfig, entries: Entries) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    log = EventLog(path, config)
    for entry in entries:
        log.append(entry)
    log.close()
    return path


def again(world: World, entries: Entries) -> None:
    replay_events(Coordinator(world.config, Network.build(world.config)), entries)


@pytest.mark.parametrize("preset", PRESETS)
def test_each_advance_holds_digests_and_each_wave_ends_with_those_of_the_weights(preset: str) -> None:
    world = recorded_world(preset)
    advances = [event for _, event in world.events if isinstance(event, Advanced)]
    assert sum(len(one.said) for one in advances) == len(world.said)
    ended = [one.weights for one in advances if one.weights]
    assert len(ended) == world.coordinator.completed_waves + world.config.run.rounds
    held = {f"{part}/{name}" for part, state in world.coordinator.weights().items() for name in state}
    assert held <= set(ended[-1]), "every weight that the server has at the end"
    again(world, world.events)


# --- where it departs


def changed(entries: Entries, kind: type, change: Callable[[Any], Any], skip: int = 3) -> tuple[Entries, int]:
    """One entry of a kind changed; and its number, from 1."""
    found = [number for number, (_, event) in enumerate(entries) if isinstance(event, kind)]
    at = found[skip]
    client, event = entries[at]
    return [*entries[:at], (client, change(event)), *entries[at + 1 :]], at + 1


def one_bit(event: Smashed) -> Smashed:
    z = event.z.clone()
    z.view(-1).view(torch.int32)[z.abs().argmax()] ^= 1 << 16
    return replace(event, z=z, packed=None)


def test_one_bit_of_one_activation_shows_in_the_next_gradient() -> None:
    world = recorded_world()
    entries, number = changed(world.events, Smashed, one_bit)
    with pytest.raises(Departed, match=r"gradient to c\d: (loss|dz) is .*, the log says ") as departed:
        again(world, entries)
    assert departed.value.number > number
    assert all(not isinstance(e, Smashed) or c for c, e in entries[number : departed.value.number])


def test_a_changed_digest_of_a_weight_is_named() -> None:
    world = recorded_world()
    ends = [n for n, (_, e) in enumerate(world.events) if isinstance(e, Advanced) and e.weights]
    at = ends[0]
    weights = dict(world.events[at][1].weights)  # type: ignore[union-attr]
    name = list(weights)[-1]
    entry = replace(world.events[at][1], weights=weights | {name: "float32[1] 0000000000000000"})  # type: ignore[type-var]
    with pytest.raises(Departed, match=rf"event {at + 1}: weights after wave 1: {re.escape(name)} is float32"):
        again(world, [*world.events[:at], ("", entry), *world.events[at + 1 :]])


def test_what_the_coordinator_refuses_in_the_replay_alone() -> None:
    world = recorded_world()
    entries, number = changed(world.events, Smashed, lambda event: replace(event, step=event.step + 7))
    with pytest.raises(Departed, match=rf"event {number}: smashed of c\d is refused \(.*\), the run took it"):
        again(world, entries)


@pytest.mark.parametrize("lacks", ["event", "advance"])
def test_an_entry_that_is_missing(lacks: str) -> None:
    world = recorded_world()
    kind = Smashed if lacks == "event" else Advanced
    at = [n for n, (_, event) in enumerate(world.events) if isinstance(event, kind)][5]
    with pytest.raises(Departed):
        again(world, [*world.events[:at], *world.events[at + 1 :]])


def test_a_run_that_was_stopped_and_one_that_failed_replay_to_their_ends() -> None:
    world = World(make_config("splitfed_v1"))
    for _ in range(3):
        world.join()
    world.run(until=60)
    world.sessions.stop("stopped by its operator")
    world.run()
    assert any(isinstance(event, Stopped) for _, event in world.events)
    again(world, world.events)

    world = World(
        make_config("splitfed_v1", server__optimizer='{ kind = "sgd", lr = 1e30 }', server__guard__weights='"off"')
    )
    for _ in range(3):
        world.join()
    with pytest.raises(Diverged) as diverged:
        world.run()
    world.sessions.stop(str(diverged.value))
    assert [type(e) for _, e in world.events[-3:]] == [Advanced, Failed, Stopped]
    again(world, world.events)
    with pytest.raises(Departed, match="the replay failed at the event before"):
        again(world, [*world.events[:-2], world.events[-1]])
    with pytest.raises(Departed, match="does not say that the run did"):
        again(world, world.events[:-2])
    with pytest.raises(Departed, match="the run failed at the event before"):
        again(world, [*world.events[:10], ("", Failed(error="Diverged: x"))])


# --- the file


def test_every_changed_byte_of_a_log_is_found(tmp_path: Path) -> None:
    """Wherever it is: in a length, a name, a header, a tensor, a checksum, or the preface."""
    world = recorded_world(run__rounds=1, client__wave="{ steps = 1 }")
    data = write_log(tmp_path / "events.log", world.config, world.events).read_bytes()
    sizes = [len(eventlog.dump(*entry)) for entry in world.events]
    start = len(data) - sum(sizes)
    places = {0, 9, 13, 17, start // 2, start - 1}
    for number, nbytes in enumerate(sizes):
        begin = start + sum(sizes[:number])
        places |= {
            begin,
            begin + 3,
            begin + LENGTHS.size,
            begin + 19,
            begin + 20,
            begin + nbytes // 2,
            begin + nbytes - 1,
        }
    for place in sorted(p for p in places if p < len(data)):
        damaged = tmp_path / "damaged.log"
        damaged.write_bytes(data[:place] + bytes([data[place] ^ 0x20]) + data[place + 1 :])
        with pytest.raises(ConfigError if place < start else Departed) as error:
            replay_log(damaged)
        if place >= start:
            inside = next(n for n in range(len(sizes)) if place < start + sum(sizes[: n + 1]))
            assert str(error.value).startswith(f"event {inside + 1}: event log: event {inside + 1} at byte")


def test_damage_of_a_tensor_names_it(tmp_path: Path) -> None:
    world = recorded_world()
    at = next(n for n, (_, event) in enumerate(world.events) if isinstance(event, Smashed))
    path = write_log(tmp_path / "events.log", world.config, world.events)
    data = bytearray(path.read_bytes())
    end = len(data) - sum(len(eventlog.dump(*entry)) for entry in world.events[at + 1 :])
    data[end - 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(Departed, match=rf"event {at + 1}: .*damaged: smashed, tensor 2 of 2, z: its checksum is"):
        replay_log(path)


def test_the_version_is_checked_before_anything_else(tmp_path: Path) -> None:
    config = make_config("splitfed_v1")
    path = write_log(tmp_path / "events.log", config, [])
    data = path.read_bytes()
    path.write_bytes(data[:8] + (3).to_bytes(4, "little") + b"whatever version 3 has")
    with pytest.raises(ConfigError, match="an event log of version 3, this program reads version 2"):
        replay_log(path)
    text = config.to_json().encode()
    path.write_bytes(len(text).to_bytes(4, "little") + text + b"records without checksums")
    with pytest.raises(ConfigError, match="an event log of version 1, this program reads version 2"):
        replay_log(path)
    for cut in (0, 3, 12):
        path.write_bytes(data[:cut])
        with pytest.raises(ConfigError, match=r"not an event log|cut short"):
            replay_log(path)


# --- the command


@pytest.fixture
def run_directory(tmp_path: Path) -> Path:
    world = recorded_world(run__rounds=1)
    path = write_log(tmp_path / "run" / "events.log", world.config, world.events)
    (path.parent / "summary.json").write_text(json.dumps({"weights_sha256": world.coordinator.weights_sha256()}))
    return path.parent


def call(*args: object) -> Any:
    return CliRunner().invoke(app, ["replay", *map(str, args)])


def test_the_command_says_that_all_agrees(run_directory: Path) -> None:
    result = call(run_directory)
    assert result.exit_code == 0, result.output
    assert re.search(r"replayed \d+ events, every message and all weights agree; .*, as in summary.json", result.output)
    lines = [json.loads(line) for line in call(run_directory / "events.log", "--json").output.splitlines()]
    assert [line["event"] for line in lines] == ["replaying", "replayed"]
    assert lines[-1]["as_summary"]
    assert lines[-1]["finished"]


def test_the_command_prints_a_stretch(run_directory: Path) -> None:
    shown = call(run_directory, "--from", 7, "--until", 9, "--json")
    lines = [json.loads(line) for line in shown.output.splitlines()]
    assert [line["number"] for line in lines if line["event"] == "replayed_event"] == [7, 8, 9]
    expected = {"event": "replayed", "events": 9, "finished": False, "reason": None, "as_summary": None}
    assert lines[-1] | expected == lines[-1]
    assert "-> c" in call(run_directory, "--from", 1).output


@pytest.mark.parametrize("args", [("--from", 3, "--until", 2), ("--from", 0), ("--until", 0)])
def test_a_stretch_that_is_none(run_directory: Path, args: tuple[object, ...]) -> None:
    assert call(run_directory, *args).exit_code != 0


def test_the_command_on_a_log_with_a_byte_changed(run_directory: Path) -> None:
    path = run_directory / "events.log"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    done = ran("sl-server", "replay", run_directory)
    assert done.code == 1
    assert re.search(r"error: event \d+: event log: event \d+ at byte \d+: damaged", done.err)


def test_the_command_on_a_log_of_other_weights_than_the_summary(run_directory: Path) -> None:
    (run_directory / "summary.json").write_text(json.dumps({"weights_sha256": "0" * 64}))
    result = call(run_directory)
    assert isinstance(result.exception, Departed)
    assert "summary.json says 0000000000000000" in str(result.exception)


def test_a_run_that_went_on_unrecorded_is_no_departure(run_directory: Path) -> None:
    """It was killed in the middle of a wave and resumed: the summary is of what came after the log."""
    path, world = run_directory / "events.log", recorded_world(run__rounds=1)
    path.unlink()
    write_log(path, world.config, world.events[: len(world.events) // 2])
    (run_directory / "summary.json").write_text(json.dumps({"weights_sha256": "0" * 64}))
    result = call(run_directory)
    assert result.exit_code == 0, result.exception
    assert "warning: the log ends before the run did" in result.output


def test_a_directory_without_a_log_says_how_to_record_one(tmp_path: Path) -> None:
    result = call(tmp_path)
    assert isinstance(result.exception, ConfigError)
    assert "sl-server run --record" in str(result.exception)


def test_a_log_that_a_killed_run_left(run_directory: Path) -> None:
    path = run_directory / "events.log"
    path.write_bytes(path.read_bytes()[:-3])
    (run_directory / "summary.json").unlink()
    result = call(run_directory)
    assert result.exit_code == 0
    assert "is cut short" in result.output
    assert "the run was under way" in result.output or "all rounds are done" in result.output


def test_another_kind_of_machine_is_said(run_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_file.platform, "machine", lambda: "x")
    real = log_file.Recorded.kind.fget  # type: ignore[attr-defined]
    monkeypatch.setattr(log_file.Recorded, "kind", property(lambda self: "elsewhere" if self.config else real(self)))
    assert "warning: made by elsewhere; here is cutlayer" in call(run_directory).output
