"""A run that failed goes on from its newest checkpoint, and what made it fail leaves no trace."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from federation import sha_of
from processes import Process, ran, started
from test_faults import assert_finished, batches_of, simulated_sha
from test_restart import RestartWorld
from world import make_config, segment_of

from sl_common.config.presets import PRESETS
from sl_common.config.run_config import RunConfig
from sl_common.errors import ConfigError, Diverged
from sl_common.training.segment import Tree
from sl_common.tree import loads
from sl_server.storage.run_selection import Stage, is_over, which_run
from sl_server.storage.schema import write_schema

SENDING = [name for name, preset in PRESETS.items() if preset.protocol.learner.exchange != "nothing"]

# A head that gives NaN from its n-th training pass on, in a process that is told so
NET = """
import os
import torch
from torch import nn

class Breaks(nn.Module):
    passes = 0

    def forward(self, x):
        Breaks.passes += self.training and torch.is_grad_enabled()
        at = int(os.environ.get("BREAKS_AT", "0"))
        return x * float("nan") if at and Breaks.passes > at else x

def net(input, classes):
    return [("flat", nn.Flatten()), ("in", nn.Linear(64, 16)), ("out", nn.Sequential(nn.Linear(16, classes), Breaks()))]
"""


@pytest.mark.parametrize("preset", SENDING)
def test_a_run_that_failed_goes_on_with_the_same_bits(preset: str) -> None:
    """In memory: the head's state is destroyed in the middle of a wave."""
    config = make_config(preset, run__rounds=3, model__args="{ hidden = [16], batch_norm = true, dropout = 0.2 }")
    world = RestartWorld(config, 5)
    for _ in range(3):
        world.join()
    while (
        world.coordinator.completed_waves < 1
        or world.coordinator.progress.wave is None
        or world.coordinator.progress.wave.evaluate
    ):
        world.run(until=1)
    bank = world.coordinator.bank
    for segment in [segment_of(world), *bank.copies("head").values()]:
        with torch.no_grad():
            for p in segment.module.parameters():
                p.fill_(torch.nan)
    with pytest.raises(Diverged, match="head's own state"):
        world.run()
    world.crash()
    world.run()
    assert_finished(world)
    assert world.coordinator.weights_sha256() == simulated_sha(config)
    assert len(batches_of(world)) == len(set(batches_of(world)))


@pytest.mark.parametrize("preset", ["parallel", "splitfed_v1"])
def test_the_batch_that_a_state_is_tried_on_survives_a_checkpoint(preset: str) -> None:
    world = RestartWorld(make_config(preset), 1)
    for _ in range(3):
        world.join()
    while world.coordinator.progress.checkpoint < 1:
        world.run(until=1)
    tree: Tree = loads(world.kept[0])["coordinator"]["blame"]
    assert sorted(tree, key=str) == ([None] if preset == "parallel" else [0, 1, 2])
    before = world.coordinator._blame.snapshot()
    world.crash()
    after = world.coordinator._blame.snapshot()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key]["z"], tree[key]["z"]) for key in tree)


def test_a_failed_run_is_not_over(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(make_config("parallel").to_json())
    assert not is_over(tmp_path)
    for summary, over in (
        ({"failed": True}, False),
        ({"failed": False}, True),
        ({"failed": False, "finished": False}, False),  # its operator stopped it, or its clients left
        ({"finished": True}, True),
        ([], True),
    ):
        (tmp_path / "summary.json").write_text(json.dumps(summary))
        assert is_over(tmp_path) == over
    (tmp_path / "summary.json").write_text("{")
    assert is_over(tmp_path)
    with pytest.raises(ConfigError, match="that run is over"):
        which_run(None, tmp_path, None, None, record=False)
    (tmp_path / "summary.json").write_text('{"failed": true}')
    write_schema(tmp_path)
    assert which_run(None, tmp_path, None, None, record=False)[2] is Stage.BEGUN
    assert which_run(tmp_path / "config.json", tmp_path, None, None, record=False)[2] is Stage.BEGUN


def test_a_run_that_ended_since_its_clients_left_waits_for_others_when_it_is_resumed() -> None:
    """Its newest checkpoint is of after they had left: with run.below_min = "end" it would end again at once."""
    config = make_config("parallel", run__rounds=4, run__min_clients=2, run__below_min='"end"')
    world = RestartWorld(config)
    for _ in range(3):
        world.join()
    while world.coordinator.completed_waves < 1:
        world.run(until=1)
    for name in ("c0", "c1"):
        world.lose(world.clients[name])
    world.run()
    assert world.coordinator.ended is not None
    world.crash()
    world.run()
    assert world.coordinator.ended is None
    world.join("c0")
    world.run()
    assert_finished(world)


@pytest.fixture
def user_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    (tmp_path / "breaking_net.py").write_text(NET)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return RunConfig.from_toml(
        '[run]\nrounds = 4\nclients = 2\n[model]\nname = "breaking_net:net"\ncut = "in"\ninput = [1, 8, 8]\nclasses = 10\n'
        '[client]\nwave = { steps = 3 }\n[protocol]\npreset = "splitfed_v2"\n[eval]\nevery = 1\n'
    )


def test_sl_server_run_resume_goes_on_after_a_failure(tmp_path: Path, user_code: RunConfig) -> None:
    """Processes: a head that breaks in its third round; the weights of the second evaluation stay until there are others."""
    (tmp_path / "run.json").write_text(user_code.to_json())
    out = tmp_path / "run"
    listen = ("--listen", "127.0.0.1:0", "--json")

    def clients(stack: ExitStack, server: Process) -> list[Process]:
        address = server.event("listening")["address"]
        to = ("--server", address, "--json", "--state", tmp_path / "state", "--allow", "breaking_net")
        return [stack.enter_context(started("sl-client", "run", *to, "--id", f"c{n}", cwd=tmp_path)) for n in range(2)]

    with ExitStack() as stack:
        command = ("sl-server", "run", tmp_path / "run.json", "--out", out, *listen)
        server = stack.enter_context(started(*command, cwd=tmp_path, env={"BREAKS_AT": "14"}))
        both = clients(stack, server)
        assert server.end() == 1, server.err
        for client in both:
            client.end()
        assert "which makes the head's own state the cause, not a client" in server.err
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["failed"], summary["finished"]) == (True, False)
    lower = (out / "lower.safetensors").read_bytes()
    assert ran("sl-server", "export", out, cwd=tmp_path).code == 0, "what the second evaluation left"
    with ExitStack() as stack:
        server = stack.enter_context(started("sl-server", "run", "--resume", out, *listen, cwd=tmp_path))
        server.event("resumed")
        assert not (out / "summary.json").exists()
        assert (out / "lower.safetensors").read_bytes() == lower
        both = clients(stack, server)
        assert server.end() == 0, server.err
        assert [client.end() for client in both] == [0, 0]
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["failed"], summary["finished"]) == (False, True)
    assert summary["weights_sha256"] == sha_of(user_code)
    trained = [line.rpartition(" ")[0] for line in (out / "digests.log").read_text().splitlines()]
    assert len(trained) == len(set(trained)) == 4 * 2 * 3
    again = ran("sl-server", "run", "--resume", out, *listen, cwd=tmp_path)
    assert again.code == 2
    assert "that run is over" in again.err
