"""Checkpoints, snapshots and run directories that are whole and were changed by hand: a typed error, and an older one if there is one."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from world import World, make_config

from sl_common.config.run_config import RunConfig
from sl_common.errors import ConfigError, CutlayerError, DataError
from sl_common.messages.training import Begin, Welcome
from sl_common.network.network import Network
from sl_server.core.coordinator import Coordinator
from sl_server.report.past import read_past_run as read_past
from sl_server.storage.checkpoint import Checkpoints
from sl_server.storage.export import export_run
from sl_server.storage.run_selection import outcome
from sl_server.storage.trained import config_of, read_trained_run
from sl_server.telemetry.ledger import Ledger
from sl_server.training.rehearsal import rehearse

CONFIG = make_config("parallel", run__clients=2, run__rounds=1)


@pytest.fixture(scope="module")
def world() -> World:
    world = World(CONFIG)
    for _ in range(2):
        world.join()
    world.run()
    return world


@pytest.fixture
def tree(world: World) -> dict[str, Any]:
    """A checkpoint as a server writes it."""
    extra = {"files": {"metrics.jsonl": 3}, "ledger": Ledger().snapshot(), "seconds": 1.5}
    return copy.deepcopy(world.sessions.snapshot() | extra)


def tried(tree: Any) -> None:
    network = Network.build(CONFIG)
    rehearse(tree, network, Coordinator(CONFIG, Network.build(CONFIG)))


def at(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(tree: Any) -> None:
        for key in path[:-1]:
            tree = tree[key]
        tree[path[-1]] = value

    return change


def without(*path: Any) -> Callable[[dict[str, Any]], None]:
    def change(tree: Any) -> None:
        for key in path[:-1]:
            tree = tree[key]
        del tree[path[-1]]

    return change


HEAD = ("coordinator", "bank", "shared", "head")
WEIGHT = (*HEAD, "module", "out.weight")
STATE = (*HEAD, "optimizer", "state", 0, "momentum_buffer")
TAMPERED: dict[str, Callable[[dict[str, Any]], None]] = {
    **{f"no {name}": without(name) for name in ("run", "coordinator", "residuals", "files", "ledger", "seconds")},
    **{f"{name} is a list": at(name, value=[1]) for name in ("run", "coordinator", "residuals", "files", "seconds")},
    **{
        f"no {name} of the coordinator": without("coordinator", name)
        for name in (
            "rests",
            "round",
            "plan",
            "waves",
            "over",
            "losses",
            "bank",
            "weights",
            "roster",
            "recordings",
            "alignments",
        )
    },
    **{
        f"{name} is a text": at("coordinator", name, value="x")
        for name in ("rests", "round", "waves", "losses", "roster", "bank")
    },
    "a round below nothing": at("coordinator", "round", value=-1),
    "a round without end": at("coordinator", "round", value=1 << 70),
    "seconds without end": at("seconds", value=float("inf")),
    "seconds before the run": at("seconds", value=-1.0),
    "a file of no length": at("files", "metrics.jsonl", value=-1),
    "a plan of text": at("coordinator", "plan", value=[["x"]]),
    "weights of another shape": at(*WEIGHT, value=torch.zeros(3)),
    "weights of another type": at(*WEIGHT, value=torch.zeros(10, 16, dtype=torch.int64)),
    "weights that are none": at(*WEIGHT, value="x"),
    "weights that are not finite": at(*WEIGHT, value=torch.full((10, 16), float("nan"))),
    "a weight that is missing": without(*WEIGHT),
    "a part that is missing": without(*HEAD),
    "no optimiser": at(*HEAD, "optimizer", value=None),
    "a momentum of another shape": at(*STATE, value=torch.zeros(3)),
    "a momentum of text": at(*STATE, value="x"),
    "a momentum that is not finite": at(*STATE, value=torch.full((10, 16), float("inf"))),
    "another optimiser's option": at(*HEAD, "optimizer", "param_groups", 0, "momentum", value="x"),
    "a client that is no table": at("coordinator", "roster", 0, value=3),
    "a client of no name": without("coordinator", "roster", 0, "name"),
    "a client's shard of text": at("coordinator", "roster", 0, "shard", value="x"),
    "a client's samples of text": at("coordinator", "roster", 0, "samples", value="x"),
    "a client's late waves of text": at("coordinator", "roster", 0, "late", value="x"),
    "a recording of another cut": at(
        "coordinator",
        "recordings",
        value={0: [{"y": torch.zeros(2), "packed": [("identity", 0, (2, 3), b"", bytes(24))]}]},
    ),
    "a recording of nothing": at("coordinator", "recordings", value={0: [{"y": torch.zeros(2), "packed": []}]}),
}


def test_a_checkpoint_that_nobody_changed_is_taken(tree: dict[str, Any]) -> None:
    tried(tree)


@pytest.mark.parametrize("what", TAMPERED)
def test_a_checkpoint_that_was_changed_is_passed_over_for_an_older_one(
    what: str, tree: dict[str, Any], tmp_path: Path
) -> None:
    checkpoints, warned = Checkpoints(tmp_path), list[str]()
    changed = copy.deepcopy(tree)
    TAMPERED[what](changed)
    with pytest.raises(DataError, match="does not fit this run"):
        tried(changed)
    checkpoints.save(1, tree)
    checkpoints.save(2, changed)
    found = checkpoints.newest(warned.append, tried)
    assert found is not None
    assert found["coordinator"]["rests"] == tree["coordinator"]["rests"]
    assert "checkpoint-00000002.tree" in warned[0]
    checkpoints.save(3, changed)
    with pytest.raises(ConfigError, match="none of its 2 checkpoints could be read"):
        checkpoints.newest(warned.append, tried)


def snapshot(world: World) -> Any:
    seat = next(iter(world.clients.values())).seat
    assert seat is not None
    return copy.deepcopy(seat.snapshot())


@pytest.mark.parametrize(
    "change",
    [
        without("bank"),
        without("residuals"),
        at("bank", value=3),
        at("residuals", value=3),
        without("bank", "shared", "lower"),
        without("bank", "shared", "lower", "module"),
        at("bank", "shared", "lower", "module", value=[]),
        at("bank", "shared", "lower", "optimizer", value="x"),
        at("bank", "shared", "lower", "optimizer", "state", 0, "momentum_buffer", value=torch.zeros(3)),
        at("bank", "copies", value={"x": 1}),
    ],
)
def test_a_clients_snapshot_that_was_changed_ends_it_in_words(world: World, change: Callable[[Any], None]) -> None:
    kept = snapshot(world)
    change(kept)
    seat = world.take_seat(Welcome(config=CONFIG.to_json(), client="c0", shard=0, shards=2))
    seat.snapshots.last = kept
    begin = Begin(round=0, rounds=1, intact=True)
    with pytest.raises(DataError, match="--state"):
        next(seat.wave(begin))


# --- run directories


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", '{"run": 3}', '{"reason": "x", "evaluation": 3}', "[" * 100_000, "\xff"]
)
def test_a_summary_or_configuration_that_was_changed_is_told(text: str, tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(text, encoding="latin-1")
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(CutlayerError):
        outcome(tmp_path)
    with pytest.raises(CutlayerError):
        config_of(tmp_path)
    with pytest.raises(CutlayerError):
        export_run(tmp_path, to=None, lower=None, head=None)


@pytest.mark.parametrize(
    "change",
    [
        {"seconds": "x"},
        {"seconds": None},
        {"bytes": 3},
        {"bytes": {"up": 3}},
        {"weights_sha256": 3},
        {"reason": [1]},
        {"finished": "no way"},
    ],
)
def test_a_report_of_a_summary_that_was_changed_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    good = {"seconds": 1.0, "bytes": {}, "payload_bytes": {}, "weights_sha256": "", "reason": "x", "finished": True}
    (tmp_path / "config.json").write_text(CONFIG.to_json())
    (tmp_path / "metrics.jsonl").write_text("")
    (tmp_path / "summary.json").write_text(json.dumps(good))
    assert read_past(tmp_path).seconds == 1.0
    (tmp_path / "summary.json").write_text(json.dumps(good | change))
    with pytest.raises(ConfigError, match=r"summary\.json"):
        read_past(tmp_path)


@pytest.mark.parametrize("row", ["[" * 100_000, "3", "{}", '{"event": "round", "round": "x"}'])
def test_a_line_of_metrics_that_was_changed_is_told(row: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(CONFIG.to_json())
    (tmp_path / "metrics.jsonl").write_text(row + "\n")
    with pytest.raises(ConfigError, match=r"metrics\.jsonl, line 1"):
        read_past(tmp_path)


def test_weights_that_do_not_fit_are_told(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    (tmp_path / "config.json").write_text(CONFIG.to_json())
    (tmp_path / "summary.json").write_text(json.dumps({"finished": True}))
    for name in ("lower", "head"):
        save_file({"x": torch.zeros(3)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(CutlayerError):
        export_run(tmp_path, to=None, lower=None, head=None)
    with pytest.raises(CutlayerError):
        read_trained_run(tmp_path, lambda _text: None, torch.device("cpu"))
    assert RunConfig.from_json(CONFIG.to_json()) == CONFIG
