"""A stacked simulation is the plain one: the same facts and bytes, and weights that differ in their last bits at most."""

from __future__ import annotations

import copy
import importlib
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner
from world import make_config

from sl_common.codec import Link
from sl_common.config.run_config import RunConfig
from sl_common.errors import ConfigError, Diverged, WireError
from sl_common.messages.facts import Evaluated, Fact, RoundEnded, Trained
from sl_common.messages.training import Gradient, Leave, Smashed
from sl_common.network.network import Network
from sl_common.training.optim import Adam, Optimizer, Sgd
from sl_common.training.segment import Segment
from sl_common.wire import Endpoint
from sl_server.cli.application import app
from sl_server.simulation.choice import OTHER_BITS, StackedOption, measured_gain, simulation_of
from sl_server.simulation.simulation import Simulation
from sl_server.simulation.vectorized.simulation import Stacked
from sl_server.simulation.vectorized.sizes import Sizes
from sl_server.simulation.vectorized.stack import Stack
from sl_server.telemetry.ledger import Ledger

NEAR = {"rtol": 1e-4, "atol": 1e-5}
EPOCHS = {"client__wave": "{ epochs = 1 }"}
SKEWED = {**EPOCHS, "data__partition": '{ kind = "dirichlet", alpha = 0.5 }', "data__batch_size": 64}
ADAM = {"client__optimizer": '{ kind = "adam", lr = 0.002 }'}
CNN = {"model__name": '"cnn"', "model__args": "{ channels = [4, 4], hidden = 8 }"}
HALF = {"protocol__waves": '{ kind = "parallel", fraction = 0.5 }', "run__clients": 5, "run__rounds": 5}

CASES: dict[str, tuple[str, dict[str, object]]] = {
    "lock-step": ("parallel", {}),
    "one client": ("parallel", {"run__clients": 1}),
    "shared gradients": ("sglr", {"run__clients": 4}),
    "a head each, averaged": ("splitfed_v1", EPOCHS),
    "one after another, averaged": ("splitfed_v2", EPOCHS),
    "in turn by batches": ("splitfed_v2", {"protocol__barrier__unit": '"batch"'}),
    "a wave each": ("sequential", {}),
    "frozen and silent rounds": ("loss_async", {"run__rounds": 5, "protocol__gate__threshold": 1e300}),
    "frozen together": ("parallel", {"run__rounds": 4, "protocol__gate": '{ kind = "periodic", k = 2 }'}),
    "batches of any size": ("parallel", {**EPOCHS, "run__clients": 5, "data__batch_size": 13}),
    "unequal shards": ("parallel", {**SKEWED, "run__clients": 5}),
    "unequal shards, adam": ("parallel", {**SKEWED, **ADAM, "run__clients": 5}),
    "by data": ("parallel", {**SKEWED, "protocol__head__weights": '"data"'}),
    "half of them": ("parallel", HALF),
    "half of them, adam": ("parallel", {**HALF, **ADAM}),
    "half of them, averaged": ("splitfed_v1", HALF),
    "plain sgd": ("parallel", {"client__optimizer": '{ kind = "sgd", lr = 0.1 }'}),
    "dampened": (
        "parallel",
        {**HALF, "client__optimizer": '{ kind = "sgd", lr = 0.1, momentum = 0.9, dampening = 0.3 }'},
    ),
    "adamw": ("parallel", {"client__optimizer": '{ kind = "adamw", lr = 0.002, amsgrad = true }'}),
    "falling rate": ("parallel", {"client__schedule": '{ kind = "cosine" }'}),
    "images": ("parallel", {**CNN, "run__clients": 4}),
    "two blocks of images": ("sglr", {**CNN, "model__cut": 2, **SKEWED, "protocol__head__scatter__unequal": '"mean"'}),
    "augmented": ("parallel", {**CNN, **EPOCHS, "data__augment": '"crop_flip"', "data__batch_size": 96}),
    "several frames": ("parallel", {"model__args": "{ hidden = [9000] }", "run__clients": 2, "run__rounds": 1}),
    "many frames": ("parallel", {"client__wave": "{ steps = 140 }", "data__batch_size": 4, "run__clients": 2}),
    "own beginnings": ("parallel", {"client__initial": '"own"', "client__window": 2}),
    "a quorum": ("parallel", {"protocol__barrier": '{ kind = "quorum" }'}),
    "clipped": ("parallel", {"server__guard": '{ action = "clip", activations = 0.5 }'}),
    "encoded weights": ("splitfed_v1", {"codec__state": '{ kind = "float16" }'}),
}


def run_of(kind: type[Simulation], config: RunConfig) -> tuple[Simulation, list[Fact], Ledger]:
    ledger = Ledger()
    simulation = kind(config, count=ledger.count)
    return simulation, simulation.run(), ledger


def weights_of(simulation: Simulation) -> dict[str, Tensor]:
    heads = simulation.coordinator.weights()
    lowers = {f"lower {shard}": seat.bank.get("lower").state() for shard, seat in simulation.seats.items()}
    return {f"{part} {name}": t for part, state in (heads | lowers).items() for name, t in state.items()}


def outline(fact: Fact) -> tuple[object, ...]:
    """All of a fact but what depends on the last bits."""
    loose = {"loss", "crc32"} | ({"accuracy", "lowest", "highest", "clients"} if isinstance(fact, Evaluated) else set())
    return type(fact), *((f.name, getattr(fact, f.name)) for f in fields(fact) if f.name not in loose)


def numbers(facts: list[Fact]) -> list[float]:
    """What does."""
    losses = [
        fact.loss for fact in facts if isinstance(fact, Trained | RoundEnded | Evaluated) if fact.loss is not None
    ]
    return losses + [score.loss for fact in facts if isinstance(fact, Evaluated) for score in fact.clients.values()]


@pytest.mark.parametrize("case", CASES)
def test_a_stacked_run_is_the_plain_run(case: str) -> None:
    preset, overrides = CASES[case]
    config = make_config(preset, **overrides)
    plain, plain_facts, plain_ledger = run_of(Simulation, config)
    stacked, facts, ledger = run_of(Stacked, config)
    assert [outline(fact) for fact in facts] == [outline(fact) for fact in plain_facts]
    assert numbers(facts) == pytest.approx(numbers(plain_facts), rel=1e-3)
    assert ledger.wire == plain_ledger.wire
    assert ledger.payload == plain_ledger.payload
    torch.testing.assert_close(weights_of(stacked), weights_of(plain), **NEAR)
    for seat in stacked.seats.values() if config.codec == Link() else ():
        member = stacked.coordinator.roster.by_shard(seat.shard)
        assert member.holds["lower"] == seat.bank.get("lower").digest(), "what was reported is what is there"


def test_losses_go_to_the_gate_as_in_the_plain_run() -> None:
    """A gate that looks at losses decides alike where it does not look at their last digits."""
    config = make_config("loss_async", run__rounds=6, run__clients=2, protocol__gate__threshold=0.3)
    (_, plain, _), (_, stacked, _) = run_of(Simulation, config), run_of(Stacked, config)
    assert [outline(fact) for fact in stacked] == [outline(fact) for fact in plain]


@pytest.mark.parametrize("name", ["mlp", "cnn", "cnn_lrn", "cnn_emnist", "alexnet"])
def test_named_models_compute_alike_in_a_stack(name: str) -> None:
    """One step of three of its lower segments on one batch each, cut after two blocks where it has as many."""
    args = {"mlp": "args = { hidden = [8, 8] }", "cnn_emnist": "args = { dropout = [0.0, 0.0] }"}.get(name, "")
    config = RunConfig.from_toml(f'[model]\nname = "{name}"\ncut = 2\n{args}\n[data]\nname = "cifar10"')
    network = Network.build(config)
    segments = [Segment(copy.deepcopy(network.lower), Sgd()) for _ in range(6)]
    stack = Stack(segments[:3], Sgd(), config.input)
    x, dz = random(3, 2, *config.input), random(3, 2, *network.cut_shape)
    passed = stack.forward(range(3), x)
    stack.learn(passed, dict(enumerate(dz)), lr=0.1)
    for place, segment in enumerate(segments[3:]):
        segment.set_lr(0.1)
        z = segment.forward(x[place])
        segment.backward(z, dz[place])
        segment.step()
        torch.testing.assert_close(passed.z[place], z, **NEAR)
        torch.testing.assert_close(segments[place].state(), segment.state(), **NEAR)


OWN_DATA = """
import torch
from sl_client.data import Data, digits

def own(root):
    (x, y), test = digits.read()
    return Data(train=(x[own.calls :: 3][:70], y[own.calls :: 3][:70]), test=test, std=1.0 + own.count(), classes=10)

own.calls = 0
def count():
    own.calls += 1
    return own.calls
own.count = count
"""


def test_clients_with_data_of_their_own_are_stacked_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every client has another set, with a scale of its own."""
    (tmp_path / "own_sets.py").write_text(OWN_DATA)
    monkeypatch.syspath_prepend(tmp_path)
    own = {"data__name": '"own_sets:own"', "model__input": "[1, 8, 8]", "model__classes": 10}
    config = make_config("parallel", **own, data__partition='{ kind = "own" }', **EPOCHS)
    runs = []
    for kind in (Simulation, Stacked):
        importlib.import_module("own_sets").own.calls = 0
        runs.append(run_of(kind, config))
    (plain, _, plain_ledger), (stacked, _, ledger) = runs
    assert len({float(seat.data.data.std) for seat in stacked.seats.values()}) == 3
    assert ledger.wire == plain_ledger.wire
    torch.testing.assert_close(weights_of(stacked), weights_of(plain), **NEAR)


# --- the stack


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def stack_of(count: int, optimizer: Optimizer) -> tuple[Stack, list[Segment]]:
    torch.manual_seed(0)
    modules = [nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)) for _ in range(count)]
    segments = [Segment(module, optimizer) for module in modules]
    return Stack(segments, optimizer, (3,)), segments


def learn(stack: Stack, places: Collection[int], number: int, among: Collection[int] | None = None) -> None:
    """A step of the segments at these places, in a pass of all `among` which they are; its batches by `number` and place."""
    wide = sorted(among or places)
    x = torch.stack([random(4, 3) + number + place for place in wide])
    dz = {place: random(4, 2) * (1 + number) + place for place in places}
    stack.learn(stack.forward(wide, x), dz, lr=0.1)


@pytest.mark.parametrize("optimizer", [Sgd(momentum=0.9), Adam(amsgrad=True), Adam(kind="adamw")], ids=repr)
@pytest.mark.parametrize("among", [None, range(5)], ids=["alone", "in a pass of all"])
@pytest.mark.parametrize("places", [(1, 2), (0, 3), (4,), (0, 1, 2, 3, 4)], ids=repr)
def test_only_those_that_train_move(optimizer: Optimizer, among: Collection[int] | None, places: Sequence[int]) -> None:
    stack, segments = stack_of(5, optimizer)
    for number in range(2):
        learn(stack, range(5), number)
    before = [segment.state() for segment in segments]
    learn(stack, places, 2, among)
    moved = [
        any(not torch.equal(t, old[n]) for n, t in s.state().items()) for s, old in zip(segments, before, strict=True)
    ]
    assert moved == [place in places for place in range(5)]


@pytest.mark.parametrize("optimizer", [Sgd(momentum=0.9), Sgd(momentum=0.9, dampening=0.5), Adam()], ids=repr)
def test_each_segment_steps_by_its_own_optimiser(optimizer: Optimizer) -> None:
    """Whoever trains beside it: alone, side by side, with one between them that does not, at other ages."""
    stack, together = stack_of(4, optimizer)
    lonely = [stack_of(4, optimizer) for _ in range(4)]
    for number, places in enumerate([(0, 1), (0, 1), (2, 3), (1, 3), (0,), (0, 1, 2, 3), (0, 2), (0, 1, 2, 3)]):
        by_age: dict[int, list[int]] = {}
        for place in places:
            by_age.setdefault(stack.age(place), []).append(place)
            learn(lonely[place][0], [place], number)
        for alike in by_age.values():
            learn(stack, alike, number)
    for place, segment in enumerate(together):
        torch.testing.assert_close(segment.state(), lonely[place][1][place].state(), **NEAR)


def test_segments_in_a_stack_are_loaded_read_and_fingerprinted_as_ever() -> None:
    stack, segments = stack_of(3, Sgd())
    fresh = Segment(nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)), Sgd())
    segments[1].load(fresh.state())
    assert segments[1].digest() == fresh.digest()
    x = random(1, 4, 3)
    torch.testing.assert_close(stack.forward([1], x).z[0], fresh.forward(x[0]))
    assert segments[0].digest() != fresh.digest()


# --- bytes


def endpoints(chunk_bytes: int) -> tuple[Endpoint, Endpoint]:
    client, server = (
        Endpoint(side, link=Link(), limit_bytes=1 << 20, chunk_bytes=chunk_bytes) for side in ("client", "server")
    )
    return client, server


def conversation(steps: int) -> Iterator[tuple[bool, Smashed | Gradient]]:
    """From the client or not, and what: batches of two sizes, with losses and counts that are 0 now and then."""
    for step in range(steps):
        z, wanted = torch.zeros(1 + step % 3 // 2, 40), step % 5 > 0
        yield True, Smashed(step=step, round=step // 100, wave=step % 2, z=z, y=torch.zeros(len(z), dtype=torch.int64))
        loss = (0.0, -0.0, 1.5)[step % 3]
        yield False, Gradient(step=step, loss=loss, correct=step % 2, dz=z if wanted else None)


@pytest.mark.parametrize("chunk_bytes", [1 << 20, 64], ids=["one frame", "several"])
def test_frames_that_are_not_made_count_as_if_they_were(chunk_bytes: int) -> None:
    """All headers' lengths occur: numbers of one, two and three bytes, in step with what was sent for real meanwhile."""
    (client, server), (real_client, real_server) = endpoints(chunk_bytes), endpoints(chunk_bytes)
    sizes = Sizes()
    for up, message in conversation(6000):
        sender, receiver = (real_client, real_server) if up else (real_server, real_client)
        frames = sender.pack(message)
        for frame in frames:
            receiver.feed(frame.data)
        counted = sizes.pass_by(message, *((client, server) if up else (server, client)))
        assert [frame.tally for frame in counted] == [frame.tally for frame in frames]
    assert (client.delivery.sent, client.received) == (real_client.delivery.sent, real_client.received)
    assert (server.delivery.sent, server.received) == (real_server.delivery.sent, real_server.received)
    assert client.delivery.sent > 1 << 14 or chunk_bytes > 64
    for frame in client.pack(Leave(reason="enough")):
        assert server.feed(frame.data).message == Leave(reason="enough")


# --- what cannot be stacked


def with_lower(*modules: nn.Module) -> Callable[[Network], Network]:
    return lambda network: replace(network, blocks=(("own", nn.Sequential(*modules)), *network.blocks[1:]))


def frozen() -> nn.Module:
    return nn.Linear(64, 16).requires_grad_(False)


REASONS: dict[str, tuple[str, dict[str, object], Callable[[Network], Network], str]] = {
    "nothing": ("parallel", {}, lambda network: network, ""),
    "whole networks": ("fedavg", {}, lambda network: network, "protocol.learner.kind = 'local': "),
    "own losses": ("locsplitfed", {}, lambda network: network, "protocol.learner.kind = 'local_loss': "),
    "both": ("locfedsl", {}, lambda network: network, "protocol.learner.kind = 'split_local': "),
    "up": ("parallel", {"codec__up": '{ kind = "float8" }'}, lambda network: network, "codec.up.kind = 'float8': "),
    "down": ("parallel", {"codec__down": '{ kind = "topk" }'}, lambda network: network, "codec.down.kind = 'topk': "),
    "dropout": (
        "parallel",
        {"model__args": "{ hidden = [16], dropout = 0.5 }"},
        lambda network: network,
        "model.name = 'mlp' cut at 1: the lower segment draws random numbers",
    ),
    "buffers": (
        "parallel",
        {"model__args": "{ hidden = [16], batch_norm = true }"},
        lambda network: network,
        "model.name = 'mlp' cut at 1: the lower segment has buffers",
    ),
    "nothing to train": ("parallel", {}, with_lower(nn.Flatten(), frozen()), "has nothing to train"),
    "no rule": (
        "parallel",
        {},
        with_lower(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(64, 16))),
        "torch.func.vmap cannot run the lower segment: There is a performance drop",
    ),
    "does not run": ("parallel", {}, with_lower(nn.Linear(3, 16)), "torch.func.vmap cannot run the lower segment: "),
}


@pytest.mark.parametrize("what", REASONS)
def test_what_cannot_be_stacked_is_said_with_its_key(what: str) -> None:
    preset, overrides, change, text = REASONS[what]
    config = make_config(preset, **overrides)
    reason = Stacked.reason_against(config, change(Network.build(config)))
    assert (text in reason and "\n" not in reason) if text else reason is None


def test_a_run_that_cannot_be_stacked_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"codec\.up\.kind = 'mask'"):
        Stacked(make_config("parallel", codec__up='{ kind = "mask" }'))


def test_activations_that_are_not_finite_end_the_run_as_ever() -> None:
    config = make_config(
        "parallel", client__optimizer='{ kind = "sgd", lr = 1e30 }', server__optimizer='{ kind = "sgd", lr = 1e30 }'
    )
    errors = []
    for kind in (Simulation, Stacked):
        with pytest.raises((WireError, Diverged)) as caught:
            kind(config).run()
        errors.append(caught.type)
    assert errors[0] is errors[1]


# --- the choice


def test_the_choice_is_as_asked_for_and_is_told() -> None:
    config, floats = make_config("parallel"), make_config("parallel", codec__up='{ kind = "float16" }')

    def chosen(config: RunConfig, asked: StackedOption) -> tuple[type, str | None]:
        simulation, told = simulation_of(
            config, asked, data=None, device="cpu", client_device="cpu", count=Ledger().count
        )
        return type(simulation), told

    assert chosen(config, "off") == (Simulation, None)
    assert chosen(config, "on") == (Stacked, OTHER_BITS)
    kind, told = chosen(floats, "auto")
    assert kind is Simulation
    assert told is not None
    assert told.startswith("not stacked: codec.up.kind = 'float16'")
    kind, told = chosen(config, "auto")
    assert told is not None
    assert told == OTHER_BITS if kind is Stacked else told.startswith("not stacked: in a short trial it was 0.")
    with pytest.raises(ConfigError, match=r"^--stacked on: codec\.up\.kind = 'float16'"):
        chosen(floats, "on")


def test_a_trial_measures_the_first_clients_batches_and_leaves_the_run_alone() -> None:
    assert 0 < measured_gain(make_config("parallel", run__clients=40, data__batch_size=8)) < 1000


def test_the_command_says_what_it_did_and_counts_the_same_bytes(tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text(
        '[run]\nrounds = 1\nclients = 3\n[protocol]\npreset = "parallel"\n[client]\nwave = { steps = 2 }\n'
    )
    summaries = {}
    for asked in ("off", "on"):
        out = tmp_path / asked
        result = CliRunner().invoke(app, ["simulate", str(config), "--out", str(out), "--stacked", asked, "--json"])
        assert result.exit_code == 0
        assert (OTHER_BITS in result.output) == (asked == "on")
        summaries[asked] = json.loads((out / "summary.json").read_text())
    assert summaries["on"].pop("stacking") == OTHER_BITS
    for key in ("bytes", "payload_bytes", "clients", "finished"):
        assert summaries["on"][key] == summaries["off"][key]
    assert summaries["on"]["train_loss"] == pytest.approx(summaries["off"]["train_loss"], rel=1e-4)
    assert summaries["on"].keys() == summaries["off"].keys()
