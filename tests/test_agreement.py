"""Devices that do not hold what the run believes: another data set, another network, or one set under several names."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from world import make_config

from sl_client.data import Data, load_data
from sl_client.data.identity import data_set_of
from sl_client.training.seat import take_seat
from sl_common.config.run_config import RunConfig
from sl_common.errors import ConfigError, DataError, Refused, WireError
from sl_common.holdings import Build, DataSet, apart
from sl_common.messages.events import Joined
from sl_common.messages.facts import ClientsDoubtful, Evaluated
from sl_common.messages.training import Leave, Ready, Welcome
from sl_common.network.builds import build_difference, builds_of
from sl_common.network.network import Network
from sl_common.training.segment import _NO_LOCK
from sl_server.core.coordinator import Coordinator
from sl_server.simulation.simulation import Simulation
from sl_server.training.rehearsal import rehearse

CODE = """
import numpy as np
import torch
from torch import nn
from sl_client.data import Data

def data(root):
    with np.load(root / "set.npz") as a:
        x, y, tx, ty = (torch.from_numpy(a[k]) for k in ("x", "y", "tx", "ty"))
    return Data(train=(x, y), test=(tx, ty), mean=float(x.float().mean()) if x.is_floating_point() else 0.5, classes=10)

def normal(root):
    found = data(root)
    mean, std = {"a": (127.0, 70.0), "b": (127.0, 1.0)}.get(root.name, (120.0, 75.0))
    return Data(train=found.train, test=found.test, mean=mean, std=std, classes=10)

calls = []

def drawn(root):
    calls.append(1)
    x = torch.randn(60, 1, 8, 8, generator=torch.Generator().manual_seed(len(calls)))
    return Data(train=(x, torch.arange(60) % 10), test=(x, torch.arange(60) % 10), classes=10)

def own(root):
    x, y = torch.arange(90 * 64).remainder(251).view(90, 1, 8, 8).float(), torch.arange(90) % 10
    return Data(train=(x[:60], y[:60]), test=(x[60:], y[60:]), classes=10)

def own_test_alike(root):
    calls.append(1)
    one = own(root)
    return Data(train=(one.train[0] + len(calls), one.train[1]), test=one.test, classes=10)

class Scaled(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor
    def forward(self, x):
        return self.factor * x

def build(act, width=32, p=0.1, factor=1.0):
    low = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.BatchNorm1d(width), act, nn.Dropout(p), Scaled(factor))
    return [("low", low), ("out", nn.Linear(width, 10))]

def network(input, classes): return build(nn.ReLU())
def tanh(input, classes): return build(nn.Tanh())
def wide(input, classes): return build(nn.ReLU(), width=48)
def drops(input, classes): return build(nn.ReLU(), p=0.4)
def halves(input, classes): return build(nn.ReLU(), factor=0.5)
def leaky(input, classes): return build(nn.LeakyReLU())
def numpy_begins(input, classes):
    blocks = build(nn.ReLU())
    with torch.no_grad():
        blocks[0][1][1].weight.copy_(torch.from_numpy(np.random.default_rng().standard_normal((32, 64))))
    return blocks
"""
OWN = {"data__partition": '{ kind = "own" }', "data__shards": 3}


@pytest.fixture(autouse=True)
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "agreeing.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "agreeing", raising=False)


def config(model: str = "network", data: str = "data", preset: str = "splitfed_v1", **more: object) -> RunConfig:
    toml = f"""
[run]
rounds = 2
clients = 3
[model]
name = "agreeing:{model}"
cut = "low"
input = [1, 8, 8]
classes = 10
[data]
name = "agreeing:{data}"
batch_size = 32
[client]
wave = {{ steps = 3 }}
[protocol]
preset = "{preset}"
"""
    return RunConfig.from_toml(toml, [f"{key.replace('__', '.')}={value}" for key, value in more.items()])


Arrays = dict[str, np.ndarray]


def arrays() -> Arrays:
    draw = np.random.default_rng(0)
    x, y = draw.integers(0, 256, (200, 1, 8, 8)).astype(np.float32), draw.integers(0, 10, 200)
    return {"x": x[:150], "y": y[:150], "tx": x[150:], "ty": y[150:]}


def written(folder: Path, these: Arrays) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "set.npz", **these)
    return folder


def ready(run: RunConfig, shard: int, root: Path | None, *, sole: bool = False) -> Ready:
    welcome = Welcome(config=run.to_json(), client=f"c{shard}", shard=shard, shards=run.shards)
    return take_seat(welcome, data=root, allowed=None, sole=sole).ready


def a_coordinator(run: RunConfig) -> Coordinator:
    coordinator = Coordinator(run, Network.build(run))
    for shard in range(run.run.clients):
        coordinator.handle("", Joined(shard=shard))
    return coordinator


def doubts(coordinator: Coordinator) -> list[str]:
    return [fact.text for fact in coordinator.advance().facts() if isinstance(fact, ClientsDoubtful)]


# --- data sets


def shuffled(a: Arrays) -> Arrays:
    whole = {k: np.concatenate([a[k], a["t" + k]]) for k in "xy"}
    order = np.random.default_rng(1).permutation(200)
    return {
        "x": whole["x"][order[:150]],
        "y": whole["y"][order[:150]],
        "tx": whole["x"][order[150:]],
        "ty": whole["y"][order[150:]],
    }


OTHERS: dict[str, tuple[Callable[[Arrays], Arrays], str]] = {
    "another split": (shuffled, "loaded another set than c0"),
    "another order": (lambda a: a | {"x": a["x"][::-1].copy(), "y": a["y"][::-1].copy()}, "loaded another set than c0"),
    "other class numbers": (lambda a: a | {"y": (a["y"] + 1) % 10}, "loaded another set than c0"),
    "one sample less": (lambda a: a | {"x": a["x"][1:], "y": a["y"][1:]}, "149 training and 50 test samples"),
    "another test part": (lambda a: a | {"ty": (a["ty"] + 1) % 10}, "loaded another set than c0"),
    "scaled": (lambda a: a | {"x": a["x"] / 255, "tx": a["tx"] / 255}, "its numbers are others than c0's"),
    "another type": (
        lambda a: a | {"x": a["x"].astype(np.uint8), "tx": a["tx"].astype(np.uint8)},
        "uint8 from 0 to 255",
    ),
    "mirrored": (lambda a: a | {"x": a["x"][..., ::-1].copy()}, "its numbers are others than c0's"),
}


@pytest.mark.parametrize("what", OTHERS)
@pytest.mark.parametrize("sole", [False, True])
def test_another_set_is_refused_with_both_values(tmp_path: Path, what: str, sole: bool) -> None:
    change, said = OTHERS[what]
    run, coordinator = config(), a_coordinator(config())
    coordinator.handle("c0", ready(run, 0, written(tmp_path / "a", arrays()), sole=sole))
    with pytest.raises(Refused, match=said) as caught:
        coordinator.handle("c1", ready(run, 1, written(tmp_path / "b", change(arrays())), sole=sole))
    assert caught.value.code == "data"
    assert "150 training and 50 test samples" in caught.value.reason or "float32 from 0 to 255" in caught.value.reason
    coordinator.handle("c2", ready(run, 2, tmp_path / "a"))
    assert [m.name for m in coordinator.roster.ready()] == ["c0", "c2"], "the others go on"


def test_last_bits_that_devices_round_differently_are_no_other_set(tmp_path: Path) -> None:
    near = {k: np.nextafter(v, np.float32(-1)) if v.dtype == np.float32 else v for k, v in arrays().items()}
    assert not np.array_equal(near["x"], arrays()["x"])
    run, coordinator = config(), a_coordinator(config())
    coordinator.handle("c0", ready(run, 0, written(tmp_path / "a", arrays())))
    coordinator.handle("c1", ready(run, 1, written(tmp_path / "b", near)))
    assert len(coordinator.roster.ready()) == 2


def test_another_set_is_taken_where_the_run_says_so_and_told(tmp_path: Path) -> None:
    run = config(data__differs='"accept"')
    coordinator = a_coordinator(run)
    coordinator.handle("c0", ready(run, 0, written(tmp_path / "a", arrays())))
    coordinator.handle("c1", ready(run, 1, written(tmp_path / "b", shuffled(arrays()))))
    assert len(coordinator.roster.ready()) == 2
    assert ["taken all the same" in text for text in doubts(coordinator)] == [True]


def test_the_right_set_is_pinned_although_the_wrong_one_comes_first(tmp_path: Path) -> None:
    right, wrong = written(tmp_path / "a", arrays()), written(tmp_path / "b", shuffled(arrays()))
    coordinator = a_coordinator(config())
    coordinator.handle("c0", ready(config(), 0, wrong))
    with pytest.raises(Refused) as caught:
        coordinator.handle("c1", ready(config(), 1, right))
    pin = caught.value.reason.partition("data.digest = '")[2][:64]
    run = config(data__digest=f'"{pin}"')
    coordinator = a_coordinator(run)
    with pytest.raises(Refused, match=f"loaded another set than data.digest = '{pin}'"):
        coordinator.handle("c0", ready(run, 0, wrong))
    coordinator.handle("c1", ready(run, 1, right))
    assert data_set_of(load_data("agreeing:data", right, None), own=False).digest == pin


def test_a_wrong_first_one_that_leaves_before_anything_is_trained_sets_nothing(tmp_path: Path) -> None:
    run, coordinator = config(), a_coordinator(config())
    coordinator.handle("c0", ready(run, 0, written(tmp_path / "b", shuffled(arrays()))))
    coordinator.handle("c0", Leave(reason="it was the wrong folder"))
    coordinator.handle("c1", ready(run, 1, written(tmp_path / "a", arrays())))
    assert [m.name for m in coordinator.roster.ready()] == ["c1"]


def test_what_was_agreed_on_is_kept_with_the_checkpoint(tmp_path: Path) -> None:
    run, coordinator = config(), a_coordinator(config())
    coordinator.handle("c0", ready(run, 0, written(tmp_path / "a", arrays())))
    tree = copy.deepcopy(coordinator.snapshot())
    again = Coordinator(run, Network.build(run))
    again.restore(tree)
    again.handle("c1", Joined(shard=1))
    with pytest.raises(Refused, match="c0, which came first"):
        again.handle("c1", ready(run, 1, written(tmp_path / "b", shuffled(arrays()))))
    assert again.agreement.inputs == coordinator.agreement.inputs
    del tree["agreement"]  # as an older version wrote it
    again.restore(tree)


@pytest.mark.parametrize("key", ["first", "own", "inputs"])
def test_a_checkpoint_whose_agreement_was_changed_does_not_fit(tmp_path: Path, key: str) -> None:
    run, coordinator = config(), a_coordinator(config())
    coordinator.handle("c0", ready(run, 0, written(tmp_path / "a", arrays())))
    tree = coordinator.snapshot()
    tree["agreement"][key] = {"low": "x"}
    whole = {"run": "", "coordinator": tree, "residuals": {}, "ledger": [], "seconds": 0.0, "files": {}}
    with pytest.raises(DataError, match="a checkpoint that does not fit this run"):
        rehearse(whole, Network.build(run), Coordinator(run, Network.build(run)))


def test_a_function_that_draws_another_set_each_time_is_found_by_the_simulator() -> None:
    with pytest.raises(Refused, match="its numbers are others than c0's"):
        Simulation(config(data="drawn")).run()


def test_a_pin_is_for_one_set() -> None:
    with pytest.raises(ConfigError, match=r"data.digest pins one set for all clients"):
        config(data__digest=f'"{"0" * 64}"', **OWN)


def test_the_digest_is_the_same_however_much_a_client_keeps() -> None:
    run = make_config("parallel")
    whole = {ready(run, shard, None).data.digest for shard in range(3)}  # type: ignore[union-attr]
    assert whole == {ready(run, shard, None, sole=True).data.digest for shard in range(3)}  # type: ignore[union-attr]
    assert len(whole) == 1


def test_digests_do_not_change() -> None:
    """Of versions: a pin in somebody's configuration is worth something."""
    assert data_set_of(load_data("digits", None, None), own=False).digest == DIGITS


DIGITS = "49946102afd4bd37a131cdec2c734f40b57d09d15879a90fd060f191d58d9d8d"


# --- networks


def built(model: str) -> tuple[Build, ...]:
    run = config(model)
    return builds_of(run, Network.build(run), run.protocol.learner.parts, _NO_LOCK)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("tanh", r"it has \[low.3: Tanh\(\)\], the server's has \[low.3: ReLU\(\)\]"),
        ("wide", r"it has \[low.1.weight float32 \(48, 64\)\], the server's has \[low.1.weight float32 \(32, 64\)\]"),
        ("drops", r"it has \[low.4: Dropout\(p=0.4, inplace=False\)\]"),
        ("halves", "for the same weights and input one of its outputs is"),
        ("leaky", r"it has \[low.3: LeakyReLU\(negative_slope=0.01\)\]"),
    ],
)
def test_another_network_is_refused_with_both_values(tmp_path: Path, model: str, said: str) -> None:
    root = written(tmp_path / "a", arrays())
    coordinator = a_coordinator(config())
    coordinator.handle("c0", ready(config(), 0, root))
    with pytest.raises(Refused, match=said) as caught:
        coordinator.handle("c1", ready(config(model), 1, root))
    assert caught.value.code == "model"
    coordinator.handle("c2", ready(config(), 2, root))
    assert [m.name for m in coordinator.roster.ready()] == ["c0", "c2"], "the others go on"


def test_another_network_is_taken_where_the_run_says_so_and_told(tmp_path: Path) -> None:
    root, run = written(tmp_path / "a", arrays()), config(model__differs='"accept"')
    coordinator = a_coordinator(run)
    coordinator.handle("c1", ready(config("tanh", model__differs='"accept"'), 1, root))
    assert ["model.differs = 'accept'" in text for text in doubts(coordinator)] == [True]


def test_initial_weights_count_for_nothing(tmp_path: Path) -> None:
    """The server's replace them; a network may draw them as it likes, and another processor in other last bits."""
    root, run = written(tmp_path / "a", arrays()), config("numpy_begins")
    coordinator = a_coordinator(run)
    for shard in range(3):
        coordinator.handle(f"c{shard}", ready(run, shard, root))
    assert len(coordinator.roster.ready()) == 3


def test_another_torch_may_write_a_layer_differently_but_not_compute_differently() -> None:
    """As a device with an older torch than the server's."""
    dtype = torch.float32
    (ours,), (tanh,) = built("network"), built("tanh")
    rewritten = replace(ours, modules=ours.modules.replace("p=0.1", "p=0.10"), modules_sha256=bytes(32))
    rounded = replace(rewritten, probe=tuple(number * (1 + 1e-6) for number in ours.probe))
    assert build_difference(rounded, ours, same_torch=False, dtype=dtype) == ""
    assert "Dropout" in build_difference(rounded, ours, same_torch=True, dtype=dtype)
    assert "Tanh" in build_difference(tanh, ours, same_torch=False, dtype=dtype)


def test_what_is_tried_out_is_afterwards_as_it_was() -> None:
    run = config()
    network = Network.build(run)
    network.lower.train()
    before = {name: t.clone() for name, t in network.lower.state_dict().items()}
    draws = torch.get_rng_state()
    parameters = [p.data_ptr() for p in network.lower.parameters()]
    builds_of(run, network, ("lower", "head"), _NO_LOCK)
    assert all(torch.equal(before[name], t) for name, t in network.lower.state_dict().items())
    assert parameters == [p.data_ptr() for p in network.lower.parameters()]
    assert all(module.training for module in network.lower.modules())
    assert torch.equal(draws, torch.get_rng_state())


@pytest.mark.parametrize("preset", ["locsplitfed", "locfedmix", "fsl_sage", "fedavg", "parallel"])
def test_every_part_that_a_client_holds_is_compared(preset: str) -> None:
    run = make_config(preset)
    said = ready(run, 0, None)
    assert sorted(build.part for build in said.builds) == sorted(run.protocol.learner.parts)
    coordinator = a_coordinator(run)
    coordinator.handle("c0", said)
    last = said.builds[-1]
    other = replace(last, probe=tuple(-number for number in last.probe))
    with pytest.raises(Refused, match=f"its {last.part} part of model 'mlp'"):
        coordinator.handle("c1", replace(said, builds=(*said.builds[:-1], other)))
    with pytest.raises(WireError, match="expected each of"):
        coordinator.handle("c1", replace(said, builds=(*said.builds, last)))


def test_segments_that_begin_apart_are_one_network() -> None:
    run = make_config("parallel", client__initial='"own"')
    coordinator = a_coordinator(run)
    for shard in range(3):
        coordinator.handle(f"c{shard}", ready(run, shard, None))
    assert len(coordinator.roster.ready()) == 3


def test_numbers_that_are_not_finite_must_be_so_in_the_same_places() -> None:
    nan, inf = math.nan, math.inf
    assert apart((1.0, nan, inf, -inf), (1.0, nan, inf, -inf)) is None
    assert apart((1.0, inf), (1.0, -inf)) == (inf, -inf)
    assert apart((1.0, 2.0), (1.0, nan)) is not None
    assert apart((1.0,), (1.0, 2.0)) is not None
    assert apart((1e-9, 1000.0), (0.0, 1000.5)) is None


# --- clients with data of their own


def scores(run: RunConfig) -> tuple[list[str], Evaluated]:
    facts = Simulation(run).run()
    (last,) = (fact for fact in facts if isinstance(fact, Evaluated) and fact.round == run.run.rounds - 1)
    return [fact.text for fact in facts if isinstance(fact, ClientsDoubtful)], last


def test_one_set_under_three_names_is_said_and_counted_once() -> None:
    told, evaluated = scores(config(data="own", **OWN))
    assert len(told) == 1
    assert told[0].startswith("all 3 clients (c0, c1, c2) loaded the same set")
    assert evaluated.samples == 30
    assert sorted(score.samples for score in evaluated.clients.values()) == [10, 10, 10]


def test_one_test_set_with_training_sets_of_their_own_is_counted_once_and_is_no_fault() -> None:
    told, evaluated = scores(config(data="own_test_alike", **OWN))
    assert (told, evaluated.samples) == ([], 30)


def test_where_every_client_has_a_network_of_its_own_each_is_tested_on_all() -> None:
    run = config(data="own", preset="parallel", **OWN)
    _, evaluated = scores(run)
    assert [score.samples for score in evaluated.clients.values()] == [30, 30, 30]


def test_own_data_in_other_units_is_said(tmp_path: Path) -> None:
    run = config(**OWN)
    coordinator = a_coordinator(run)
    coordinator.handle("c0", ready(run, 0, written(tmp_path / "a", arrays())))
    coordinator.handle("c1", ready(run, 1, written(tmp_path / "b", OTHERS["scaled"][0](shuffled(arrays())))))
    (told,) = doubts(coordinator)
    assert "float32 from 0 to 1, those of the clients before it float32 from 0 to 255" in told


def test_own_data_in_another_scale_are_said_once(tmp_path: Path) -> None:
    """The same units, and one network that would see the one's pixels around 0 and the other's from -128 to 127."""
    run = config(data="normal", **OWN)
    coordinator = a_coordinator(run)
    for shard, name in enumerate(("a", "a0", "b", "c")[: run.run.clients]):
        coordinator.handle(f"c{shard}", ready(run, shard, written(tmp_path / name, arrays())))
    told = doubts(coordinator)
    assert len(told) == 1
    assert (
        "c2: its own data are normalised with another std than those of the first client: 1 where those have 70"
        in told[0]
    )


def test_own_numbers_stay_at_home(tmp_path: Path) -> None:
    """Of data that only one client has no mean of any sample is told."""
    run = config(**OWN)
    said = ready(run, 0, written(tmp_path / "a", arrays())).data
    assert isinstance(said, DataSet)
    assert said.means == ()


# --- together


def test_what_a_client_may_say_of_itself_is_bounded(tmp_path: Path) -> None:
    said = ready(config(), 0, written(tmp_path / "a", arrays()))
    assert said.data is not None
    inputs = said.data.inputs
    for bad, why in (
        (replace(said.data, train=0), "1 to"),
        (replace(said.data, test_sha256=b"x"), "must have 32"),
        (replace(said.data, means=(0.0,) * 129), "at most 128"),
        (replace(said.data, means=(math.nan,)), "must be finite"),
        (replace(said.data, inputs=replace(inputs, low=math.inf)), "must be finite"),
        (replace(said.data, inputs=replace(inputs, low=2.0, high=1.0)), "in this order"),
        (replace(said.data, inputs=replace(inputs, dtype="\x1b[2J")), "must be a word"),
        (replace(said.data, inputs=replace(inputs, std=(0.0,))), "must be > 0"),
    ):
        with pytest.raises(WireError, match=why):
            bad.check()


def test_a_set_of_one_sample_has_a_digest_too() -> None:
    x: Tensor = torch.zeros(1, 1, 8, 8)
    one = Data(train=(x, torch.zeros(1, dtype=torch.int64)), test=(x, torch.zeros(1, dtype=torch.int64)), classes=1)
    assert data_set_of(one, own=False).train == 1


def test_of_own_sets_little_is_kept(tmp_path: Path) -> None:
    """And nothing of a client that has left."""
    run, coordinator = config(**OWN), a_coordinator(config(**OWN))
    said = ready(run, 0, written(tmp_path / "a", arrays()))
    assert said.data is not None
    inputs = replace(said.data.inputs, mean=(0.0,) * 1024, std=(1.0,) * 1024)
    for shard in range(3):
        coordinator.handle(f"c{shard}", replace(said, data=replace(said.data, means=(0.0,) * 128, inputs=inputs)))
    kept = coordinator.agreement.snapshot()
    assert [len(held["data"]["means"]) + len(held["data"]["inputs"]["mean"]) for held in kept["own"].values()] == [
        0
    ] * 3
    for shard in range(3):
        coordinator.handle(f"c{shard}", Leave(reason=""))
    assert coordinator.agreement.snapshot()["own"] == {}
