"""One process writes to a run's directory, and one to a client's state: the second is told who the first is, and touches nothing."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
from federation import slow_config
from processes import Process, ran, started
from world import make_config

from sl_client.training.snapshots_on_disk import StateFolders
from sl_common.errors import ConfigError


def running(server: Process, out: Path) -> str:
    """How others are told of it."""
    holder = json.loads((out / ".lock.holder").read_text())
    assert holder["pid"] == server._process.pid
    return f"{out}: in use by process {server._process.pid} on "


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_second_server_on_a_directory_is_told_who_the_first_is(tmp_path: Path) -> None:
    """By every command that would write there; the first goes on, and ends as if nothing had been."""
    (tmp_path / "config.json").write_text(slow_config("splitfed_v1", run__rounds=2).to_json())
    config, out = tmp_path / "config.json", tmp_path / "run"
    listen = "--listen", "127.0.0.1:0"
    with started("sl-server", "run", config, "--out", out, *listen, "--json") as first:
        address = first.event("listening")["address"]
        told, before = running(first, out), contents(out)
        seconds = (
            ("run", "--resume", out),
            ("run", config, "--resume", out),
            ("run", config, "--out", out),
            ("simulate", config, "--out", out),
        )
        for command, *options in seconds:
            second = ran("sl-server", command, *options, *(listen if command == "run" else ()))
            assert (second.code, second.out) == (2, "")
            assert told in second.err
            assert contents(out) == before
        with (
            started("sl-client", "run", "--server", address) as one,
            started("sl-client", "run", "--server", address) as two,
        ):
            assert (one.end(), two.end(), first.end()) == (0, 0, 0), first.err
    assert b"\0" not in (out / "metrics.jsonl").read_bytes()
    assert not (out / ".lock.holder").exists()
    assert "that run is over" in ran("sl-server", "run", "--resume", out, *listen).err


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(slow_config("splitfed_v1").to_json())
    out, listen = tmp_path / "run", ("--listen", "127.0.0.1:0", "--json")
    with started("sl-server", "run", tmp_path / "config.json", "--out", out, *listen) as first:
        first.event("listening")
        first.signal(signal.SIGKILL)
        first.end()
    with started("sl-server", "run", "--resume", out, *listen) as second:
        second.event("listening")
        assert running(second, out)


@pytest.mark.parametrize("command", [("run", "--resume"), ("run", "missing.toml", "--resume")])
def test_a_directory_that_holds_nothing_is_not_made(tmp_path: Path, command: tuple[str, ...]) -> None:
    done = ran("sl-server", *command, tmp_path / "none", cwd=tmp_path)
    assert done.code == 2
    assert not list(tmp_path.iterdir())


def test_parts_that_a_killed_writer_left_are_removed(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(make_config("parallel", run__rounds=1, run__clients=1).to_json())
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".config.json.0123456789abcdef.part").write_bytes(b"half")
    assert ran("sl-server", "simulate", config, "--out", tmp_path / "run").code == 0
    assert not list((tmp_path / "run").glob(".*.part"))


def test_a_clients_state_has_one_writer(tmp_path: Path) -> None:
    past = StateFolders(tmp_path)
    past.find("run", "c1", lambda _text: None)
    past.find("run", "c1", lambda _text: None)  # the same process may look again
    other = StateFolders(tmp_path)
    other.find("run", "c2", lambda _text: None)
    with pytest.raises(ConfigError, match=r"--state .*: in use by process \d+ on "):
        other.find("run", "c1", lambda _text: None)
    past.close()
    other.find("run", "c1", lambda _text: None)
    other.close()


def test_a_second_client_of_the_same_name_and_state_does_not_replace_the_first(tmp_path: Path) -> None:
    """It ends before it says a word to the server."""
    (tmp_path / "config.json").write_text(slow_config("splitfed_v1", run__rounds=2).to_json())
    with started(
        "sl-server", "run", tmp_path / "config.json", "--out", tmp_path / "run", "--listen", "127.0.0.1:0", "--json"
    ) as server:
        address = server.event("listening")["address"]
        client = ("sl-client", "run", "--server", address, "--state", tmp_path / "state", "--id")
        with started(*client, "a") as first:
            server.event("joined", client="a")
            second = ran(*client, "a")
            assert second.code == 2
            assert f"in use by process {first._process.pid} on " in second.err
            with started(*client, "b") as other:
                assert (first.end(), other.end(), server.end()) == (0, 0, 0)
        assert sum(event["event"] == "joined" and event["client"] == "a" for event in server.events) == 1
        assert not any(event["event"] == "left" for event in server.events)


def test_two_of_a_kind_at_once_are_no_race(tmp_path: Path) -> None:
    """Whoever is first: one begins, all others are refused."""
    config = tmp_path / "config.json"
    config.write_text(slow_config("splitfed_v1").to_json())
    command = ("sl-server", "run", config, "--out", tmp_path / "run", "--listen", "127.0.0.1:0", "--json")
    processes = [Process(*command) for _ in range(3)]
    try:
        while sum(process.is_running() for process in processes) > 1:
            time.sleep(0.05)
        ended = [process for process in processes if process._process.poll() is not None]
        assert [process.end() for process in ended] == [2, 2]
        (living,) = (process for process in processes if process not in ended)
        assert running(living, tmp_path / "run")
    finally:
        for process in processes:
            process.close()
