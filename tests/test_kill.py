"""Real processes, killed with no warning: what is left is enough to go on from, and the result is that of an undisturbed run."""

from __future__ import annotations

import json
import resource
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from federation import Federation, federation, sha_of, slow_config
from processes import Process, ran, started
from tally import Faults

from sl_server.report.past import read_past_run
from sl_server.report.timeline import timeline

SLOW = pytest.mark.slow
PRESETS = ["fsl_sage", *(pytest.param(name, marks=SLOW) for name in ("sequential", "parallel", "splitfed_v1"))]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_killed_server_is_resumed_to_the_same_bits(preset: str, tmp_path: Path, faults: Faults) -> None:
    config = slow_config(preset)
    with federation(config, tmp_path, faults) as run:
        for rounds in (1, 4):
            run.wait_for(rounds)
            time.sleep(0.1)  # somewhere within a wave
            run.kill_server()
            run.resume()
        summary = run.summary()
    assert summary["finished"]
    assert summary["weights_sha256"] == sha_of(config)
    trained = run.trained()
    assert len(trained) == len(set(trained)), "no batch counts twice"
    rounds = [line["round"] for line in run.lines() if line["event"] == "round"]
    assert rounds == [1, 2, 3, 4, 5, 6]
    table = (run.out / "metrics.csv").read_text().splitlines()
    assert [row.partition(",")[0] for row in table] == ["round", *map(str, rounds)], "a row each, after two restarts"
    assert "went_back" in [line["event"] for line in run.lines()]
    assert sum(line["event"] == "evaluation" for line in run.lines()) == 2


@SLOW
def test_a_server_killed_in_its_first_wave_goes_on_from_the_beginning(tmp_path: Path, faults: Faults) -> None:
    """Who has which shard is durable before anything is trained; clients said no shard of their own."""
    config = slow_config("parallel", client__wave="{ steps = 200 }", run__rounds=2)
    with federation(config, tmp_path, faults) as run:
        shards = [client.event("joined")["shard"] for client in run.clients]
        first = run.out / "checkpoint-00000000.tree"
        while not first.exists():
            time.sleep(0.01)
        time.sleep(0.2)
        run.kill_server()
        assert list(run.out.glob("checkpoint-*")) == [first]
        run.resume()
        assert run.server.event("resumed")["checkpoint"] == 0
        assert run.summary()["weights_sha256"] == sha_of(config)
    joined = [[e["shard"] for e in client.events if e["event"] == "joined"] for client in run.clients]
    assert joined == [[shard] * 2 for shard in shards]
    assert len(run.trained()) == len(set(run.trained())) == 2 * 2 * 200


def test_sigterm_stops_between_two_waves_to_be_resumed(tmp_path: Path, faults: Faults) -> None:
    config = slow_config("splitfed_v2", run__checkpoints='"round"')
    with federation(config, tmp_path, faults) as run:
        run.wait_for(1)
        run.server.signal(signal.SIGTERM)
        assert run.server.end() == 0
        assert any(line["event"] == "drained" for line in run.server.events)
        assert not (run.out / "summary.json").exists()
        assert all(client._process.poll() is None for client in run.clients), "they wait for it to come back"
        run.resume()
        assert run.server.event("resumed")["checkpoint"] >= 1
        assert run.summary()["weights_sha256"] == sha_of(config)
    again = ran("sl-server", "run", "--resume", run.out)
    assert again.code == 2
    assert "that run is over" in again.err


def test_a_server_alone_stops_at_once_and_the_same_command_goes_on(tmp_path: Path) -> None:
    """What `docker compose down` does, and `up`: clients are killed, the server gets SIGTERM, all are started again, nobody named."""
    config = slow_config("splitfed_v1", run__on_lost='"redo"')
    path = tmp_path / "config.json"
    path.write_text(config.to_json())
    server = ("sl-server", "run", path, "--resume", tmp_path / "run", "--listen", "127.0.0.1:0", "--json")

    def clients(stack: ExitStack, address: str) -> list[Process]:
        command = ("sl-client", "run", "--server", address, "--state", tmp_path / "state", "--json")
        return [stack.enter_context(started(*command)) for _ in range(2)]

    with ExitStack() as stack:
        first = stack.enter_context(started(*server))
        killed = clients(stack, first.event("listening")["address"])
        first.event("round", round=2)
        time.sleep(0.1)  # somewhere within a wave
        for client in killed:
            client.signal(signal.SIGKILL)
            client.end()
        asked = time.monotonic()
        first.signal(signal.SIGTERM)
        assert first.end() == 0
        assert time.monotonic() - asked < config.run.grace_s / 2, "it waits for nobody"
        second = stack.enter_context(started(*server))
        assert second.event("resumed")["checkpoint"] >= 2
        back = clients(stack, second.event("listening")["address"])
        assert [second.end(), *(client.end() for client in back)] == [0, 0, 0]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["weights_sha256"] == sha_of(config)
    again = ran(*server[:-1])
    assert again.code == 0
    assert "is over; all rounds are done, accuracy" in again.out
    other = ran(*server, "--set", "run.rounds=7")
    assert other.code == 2
    assert "--set works on a TOML file" in other.err


@pytest.mark.parametrize("preset", ["parallel", pytest.param("splitfed_v1", marks=SLOW)])
def test_a_killed_client_is_waited_for_under_redo(preset: str, tmp_path: Path, faults: Faults) -> None:
    """All go back to the last wave's end; the killed one has its snapshots on disk."""
    config = slow_config(preset, run__on_lost='"redo"')
    with federation(config, tmp_path, faults) as run:
        for rounds in (2,):
            run.wait_for(rounds)
            time.sleep(0.05)
            run.kill_client(1)
        summary = run.summary()
    assert summary["weights_sha256"] == sha_of(config)
    trained = run.trained()
    assert len(trained) == len(set(trained)) == 6 * 2 * 30, "every batch once"


def test_a_killed_client_takes_part_again_under_drop(tmp_path: Path, faults: Faults) -> None:
    """Exactly the lost batches are missing; the next round waits for it, as it was told to."""
    config = slow_config("splitfed_v1", run__min_clients=2)
    with federation(config, tmp_path, faults) as run:
        run.wait_for(1)
        time.sleep(0.05)
        run.kill_client(1)
        assert run.summary()["finished"]
    trained = run.trained()
    assert len(trained) == len(set(trained))
    for number in range(6):
        steps = [int(line.split()[3]) for line in trained if line.startswith(f"c1 {number} ")]
        assert steps == list(range(len(steps))), "a round is cut short, not riddled"
    assert len([line for line in trained if line.startswith("c0 ")]) == 6 * 30
    assert [line["clients"] for line in run.lines() if line["event"] == "round"][-1] == 2
    course = [line["event"] for line in run.lines() if line.get("client") == "c1" and line["event"] != "client_done"]
    life = ["client_joined", "client_ready"]
    assert [event for event in course if event != "client_away"] == [*life, "client_left", *life]
    assert len(timeline(read_past_run(run.out).lines).clients["c1"].joined) == 2


@SLOW
def test_sigterm_before_everybody_is_there_is_resumed_too(tmp_path: Path, faults: Faults) -> None:
    config = slow_config("splitfed_v1", run__rounds=2)
    with ExitStack() as stack:
        run = Federation(stack, config, tmp_path, faults=faults)
        run.join(run.address)
        run.server.event("joined")
        run.server.signal(signal.SIGTERM)
        assert run.server.end() == 0
        run.resume()
        assert run.server.event("resumed")["checkpoint"] == 0
        run.join(run.address, run.address)
        assert run.summary()["weights_sha256"] == sha_of(config)


def test_a_disk_that_takes_no_checkpoint_costs_no_training(tmp_path: Path) -> None:
    """The limit on a file's size stands for the full disk: a checkpoint of this model does not fit."""
    config = slow_config("parallel", run__rounds=2, model__args="{ hidden = [20000] }", client__wave="{ steps = 3 }")
    path = tmp_path / "config.json"
    path.write_text(config.to_json())
    out = tmp_path / "run"
    with ExitStack() as stack:
        server = stack.enter_context(
            started("sl-server", "run", path, "--listen", "127.0.0.1:0", "--out", out, "--json")
        )
        address = server.event("listening")["address"]
        resource.prlimit(server._process.pid, resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        clients = [stack.enter_context(started("sl-client", "run", "--server", address, "--json")) for _ in range(2)]
        assert [client.end() for client in clients] == [0, 0]
        server.end()
        warnings = [line["text"] for line in server.events if line["event"] == "warning"]
    assert any("no checkpoint after wave 1" in text and "training goes on" in text for text in warnings)
    assert not list(out.glob("*.part"))
    assert [line["event"] for line in map(json.loads, (out / "metrics.jsonl").read_text().splitlines())].count(
        "round"
    ) == 2


@SLOW
def test_a_server_that_was_stopped_goes_on_with_the_same_clients(tmp_path: Path, faults: Faults) -> None:
    """SIGSTOP for longer than run.grace_s and every limit of silence: nobody is refused, and the bits are the same."""
    limits = {"server__limits__silent_s": 5.0, "server__limits__stall_s": 5.0}
    config = slow_config("parallel", run__rounds=12, run__grace_s=5.0, **limits)
    with federation(config, tmp_path, faults) as run:
        run.wait_for(1, "wave_begun")
        run.server.signal(signal.SIGSTOP)
        time.sleep(8.0)
        run.server.signal(signal.SIGCONT)
        summary = run.summary()
    assert summary["weights_sha256"] == sha_of(config)
    assert not [line for line in run.lines() if line["event"] in ("client_left", "rejected")]
