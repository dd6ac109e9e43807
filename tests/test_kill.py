"""Real processes, killed with no warning: what is left is enough to go on from, and the result is that of an undisturbed run."""

from __future__ import annotations

import json
import resource
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from processes import Process, ran, started
from world import make_config

from sl_common.config import RunConfig
from sl_server.report.past import read_run
from sl_server.report.timeline import timeline
from sl_server.simulate import Simulation


def slow_config(preset: str, **more: object) -> RunConfig:
    """Rounds of some tenths of a second, so that there is something to interrupt."""
    settings: dict[str, object] = {
        "run__rounds": 6,
        "run__clients": 2,
        "client__wave": "{ steps = 30 }",
        "model__args": "{ hidden = [64], batch_norm = true, dropout = 0.2 }",
        "eval__every": 3,
        "server__alignment": "{ epochs = 2 }",
    }
    return make_config(preset, **(settings | more))


def sha_of(config: RunConfig) -> str:
    simulation = Simulation(config)
    simulation.run()
    return simulation.coordinator.weights_sha256()


class Federation:
    """A server that can be killed and resumed at its port, and clients that can be killed and started again."""

    def __init__(
        self,
        stack: ExitStack,
        config: RunConfig,
        folder: Path,
        secured: tuple[object, ...] = (),
        papers: Callable[[int], Sequence[object]] = lambda _number: (),
    ) -> None:
        """`secured`: the server's further options; `papers`: those of each client."""
        self.stack, self.folder, self.out = stack, folder, folder / "run"
        self._secured, self._papers = secured, papers
        path = folder / "config.json"
        path.write_text(config.to_json())
        to = "--listen", "127.0.0.1:0", "--out", self.out, "--json", *secured
        self.server = self._started("sl-server", "run", path, *to)
        self.address = self.server.event("listening")["address"]
        self.clients = [self.client(n) for n in range(config.run.clients)]

    def _started(self, *command: object) -> Process:
        return self.stack.enter_context(started(*command))

    def client(self, number: int) -> Process:
        at = (
            "--server",
            self.address,
            "--id",
            f"c{number}",
            "--shard",
            f"{number + 1}/2",
            "--state",
            self.folder / "state",
        )
        return self._started("sl-client", "run", *at, "--json", *self._papers(number))

    def resume(self) -> None:
        command = ("sl-server", "run", "--resume", self.out, "--listen", self.address, "--json", *self._secured)
        self.server = self._started(*command)

    def kill_server(self) -> None:
        self.server.signal(signal.SIGKILL)
        assert self.server.end() == -signal.SIGKILL

    def wait_for(self, rounds: int) -> None:
        """Until so many rounds are over, by what is on disk."""
        until = time.monotonic() + 150
        while sum(line["event"] == "round" for line in self.lines()) < rounds:
            assert time.monotonic() < until
            time.sleep(0.02)

    def lines(self) -> list[dict]:
        path = self.out / "metrics.jsonl"
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.splitlines() if line.endswith("}")]

    def summary(self) -> dict:
        assert self.server.end() == 0, self.server.err
        assert [client.end() for client in self.clients] == [0] * len(self.clients)
        return json.loads((self.out / "summary.json").read_text())

    def trained(self) -> list[str]:
        """Every batch that counts: client, round, wave, step."""
        return [line.rpartition(" ")[0] for line in (self.out / "digests.log").read_text().splitlines()]


@contextmanager
def federation(config: RunConfig, folder: Path) -> Iterator[Federation]:
    with ExitStack() as stack:
        yield Federation(stack, config, folder)


SLOW = pytest.mark.slow
PRESETS = ["fsl_sage", *(pytest.param(name, marks=SLOW) for name in ("sequential", "parallel", "splitfed_v1"))]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_killed_server_is_resumed_to_the_same_bits(preset: str, tmp_path: Path) -> None:
    config = slow_config(preset)
    with federation(config, tmp_path) as run:
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
def test_a_server_killed_before_its_first_checkpoint_begins_anew(tmp_path: Path) -> None:
    config = slow_config("parallel", client__wave="{ steps = 200 }", run__rounds=2)
    with federation(config, tmp_path) as run:
        for client in run.clients:
            client.event("joined")
        time.sleep(0.3)
        run.kill_server()
        assert not list(run.out.glob("checkpoint-*"))
        run.resume()
        assert run.summary()["weights_sha256"] == sha_of(config)


def test_sigterm_stops_between_two_waves_to_be_resumed(tmp_path: Path) -> None:
    config = slow_config("splitfed_v2", run__checkpoints='"round"')
    with federation(config, tmp_path) as run:
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


@pytest.mark.parametrize("preset", ["parallel", pytest.param("splitfed_v1", marks=SLOW)])
def test_a_killed_client_is_waited_for_under_redo(preset: str, tmp_path: Path) -> None:
    """All go back to the last wave's end; the killed one has its snapshots on disk."""
    config = slow_config(preset, run__on_lost='"redo"')
    with federation(config, tmp_path) as run:
        for rounds in (2,):
            run.wait_for(rounds)
            time.sleep(0.05)
            run.clients[1].signal(signal.SIGKILL)
            run.clients[1].end()
            run.clients[1] = run.client(1)
        summary = run.summary()
    assert summary["weights_sha256"] == sha_of(config)
    trained = run.trained()
    assert len(trained) == len(set(trained)) == 6 * 2 * 30, "every batch once"


def test_a_killed_client_takes_part_again_under_drop(tmp_path: Path) -> None:
    """Exactly the lost batches are missing; the next round waits for it, as it was told to."""
    config = slow_config("splitfed_v1", run__min_clients=2)
    with federation(config, tmp_path) as run:
        run.wait_for(1)
        time.sleep(0.05)
        run.clients[1].signal(signal.SIGKILL)
        run.clients[1].end()
        run.clients[1] = run.client(1)
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
    assert len(timeline(read_run(run.out).lines).courses["c1"].joined) == 2


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
