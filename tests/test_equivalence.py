"""Equivalence, bit for bit, to plain PyTorch loops that know nothing of cuts, messages or servers."""

from __future__ import annotations

import copy
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from world import make_config

from sl_client.data import load_data
from sl_client.data.loader import Loader, make_loader
from sl_common.config.presets import PRESETS
from sl_common.config.run_config import RunConfig
from sl_common.messages.facts import Trained
from sl_common.network.network import Network
from sl_common.seeds import seed_of
from sl_server.simulation.simulation import Simulation

# With one client these are plain training: no loss of the client's own, no round without gradients.
REDUCING = [
    name
    for name, preset in PRESETS.items()
    if preset.protocol.learner.kind in ("split", "local") and preset.protocol.gate.kind == "always"
]
OPTIMIZERS = {
    "sgd": ('{ kind = "sgd", lr = 0.05, momentum = 0.9 }', lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9)),
    "adam": ('{ kind = "adam", lr = 0.002 }', lambda p: torch.optim.Adam(p, lr=0.002)),
    "adamw": (
        '{ kind = "adamw", lr = 0.002, weight_decay = 0.1 }',
        lambda p: torch.optim.AdamW(p, lr=0.002, weight_decay=0.1),
    ),
}
MODELS = {"plain": "{ hidden = [16, 12] }", "batch_norm": "{ hidden = [16, 12], batch_norm = true }"}


def config_of(preset: str, optimizer: str = "sgd", model: str = "plain", **more: object) -> RunConfig:
    text = OPTIMIZERS[optimizer][0]
    return make_config(preset, client__optimizer=text, server__optimizer=text, model__args=MODELS[model], **more)


def whole_model(config: RunConfig) -> nn.Sequential:
    return nn.Sequential(OrderedDict(copy.deepcopy(list(Network.build(config).blocks))))


def halves(model: nn.Sequential, cut: int) -> tuple[nn.Sequential, nn.Sequential]:
    """Views of the same modules, before and after the cut."""
    return model[:cut], model[cut:]


def loaders(config: RunConfig) -> list[Loader]:
    data = load_data(config.data.name, None, ())
    return [
        make_loader(
            data,
            config.data.partition,
            config.shards,
            shard,
            config.data.batch_size,
            config.run.seed,
            last=config.deal(0).last,
        )
        for shard in range(config.run.clients)
    ]


def batches(config: RunConfig, loader: Loader, round: int) -> list:
    steps = config.client.wave.batches(loader.batches)
    return list(loader.train(round * steps, steps))


def run(config: RunConfig) -> Simulation:
    simulation = Simulation(config)
    simulation.trained = [f for f in simulation.facts() if isinstance(f, Trained)]
    return simulation


def lower_of(simulation: Simulation, client: int) -> dict[str, Tensor]:
    return simulation.seats[client].bank.get("lower").state()


def assert_same_bits(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert got.keys() == want.keys()
    different = [name for name in want if not torch.equal(got[name], want[name])]
    assert not different


def joined(simulation: Simulation, client: int = 0) -> dict[str, Tensor]:
    head = simulation.coordinator.bank.get("head", client).state()
    return lower_of(simulation, client) | head


def plain_step(model: nn.Module, optimizers: list[torch.optim.Optimizer], x: Tensor, y: Tensor) -> None:
    for optimizer in optimizers:
        optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    for optimizer in optimizers:
        optimizer.step()


def dumb_average(states: list[dict[str, Tensor]], counts: list[int]) -> dict[str, Tensor]:
    """(Σ nᵢ·xᵢ in float64) / Σ nᵢ, cast back; written without looking at ours."""
    result = {}
    for name in states[0]:
        total = sum(state[name].double() * n for state, n in zip(states, counts, strict=True)) / sum(counts)
        result[name] = total.to(states[0][name].dtype) if states[0][name].is_floating_point() else total.round().long()
    return result


@pytest.mark.parametrize("preset", REDUCING)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_one_client_is_plain_training(preset: str, optimizer: str, model: str) -> None:
    config = config_of(preset, optimizer, model, run__clients=1, run__rounds=3, client__wave="{ steps = 50 }")
    plain = whole_model(config)
    step = OPTIMIZERS[optimizer][1](plain.parameters())
    for round in range(config.run.rounds):
        plain.train()
        for batch in batches(config, loaders(config)[0], round):
            plain_step(plain, [step], batch.x, batch.y)
    assert_same_bits(joined(run(config)), plain.state_dict())


@pytest.mark.parametrize("preset", REDUCING)
def test_learning_rate_follows_its_schedule_on_both_sides(preset: str) -> None:
    schedule = '{ kind = "step", milestones = [1, 2], gamma = 0.5 }'
    config = config_of(preset, run__clients=1, run__rounds=3, client__schedule=schedule, server__schedule=schedule)
    plain = whole_model(config)
    step = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9)
    decay = torch.optim.lr_scheduler.MultiStepLR(step, [1, 2], gamma=0.5)
    for round in range(config.run.rounds):
        for batch in batches(config, loaders(config)[0], round):
            plain_step(plain, [step], batch.x, batch.y)
        decay.step()
    assert_same_bits(joined(run(config)), plain.state_dict())


@pytest.mark.parametrize("cut", [1, 2, "hidden2"])
def test_the_cut_does_not_change_the_trajectory(cut: int | str) -> None:
    config = config_of("parallel", run__clients=1, model__cut=cut)
    plain = whole_model(config)
    step = OPTIMIZERS["sgd"][1](plain.parameters())
    for round in range(config.run.rounds):
        for batch in batches(config, loaders(config)[0], round):
            plain_step(plain, [step], batch.x, batch.y)
    assert_same_bits(joined(run(config)), plain.state_dict())


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_sequential_is_plain_training_client_after_client(optimizer: str, model: str) -> None:
    """One network; every client has an optimiser of its own for the lower part, the head has one."""
    config = config_of("sequential", optimizer, model)
    plain = whole_model(config)
    lower, head = halves(plain, 1)
    make = OPTIMIZERS[optimizer][1]
    own, heads = [make(lower.parameters()) for _ in range(3)], make(head.parameters())
    for round in range(config.run.rounds):
        for client, loader in enumerate(loaders(config)):
            for batch in batches(config, loader, round):
                plain_step(plain, [own[client], heads], batch.x, batch.y)
    assert_same_bits(joined(run(config), client=2), plain.state_dict())


@pytest.mark.parametrize("model", MODELS)
def test_parallel_is_one_big_batch_at_the_head(model: str) -> None:
    """With `global_mean` the lock-step run is autograd through all lower parts and one concatenated batch."""
    config = config_of(
        "parallel", "sgd", model, protocol__head__cut_grad_scale="global_mean", client__wave="{ epochs = 1 }"
    )
    plain = whole_model(config)
    head = plain[1:]
    lowers = [copy.deepcopy(plain[:1]) for _ in range(3)]
    steps = [OPTIMIZERS["sgd"][1](m.parameters()) for m in (*lowers, head)]
    for round in range(config.run.rounds):
        for group in zip(*(batches(config, loader, round) for loader in loaders(config)), strict=True):
            for step in steps:
                step.zero_grad()
            z = torch.cat([lower(batch.x) for lower, batch in zip(lowers, group, strict=True)])
            F.cross_entropy(head(z), torch.cat([batch.y for batch in group])).backward()
            for step in steps:
                step.step()
    simulation = run(config)
    assert len({len(b.y) for b in group}) > 1, "the last batches differ in size"
    assert_same_bits(simulation.coordinator.bank.get("head").state(), head.state_dict())
    for client, lower in enumerate(lowers):
        assert_same_bits(lower_of(simulation, client), lower.state_dict())


def test_parallel_gives_each_client_the_gradient_of_its_own_mean_loss() -> None:
    """With `own_mean` a client steps as if the loss were the mean over its own batch alone."""
    config = config_of("parallel", run__rounds=1, client__wave="{ steps = 1 }")
    plain = whole_model(config)
    simulation = run(config)
    for client, loader in enumerate(loaders(config)):
        alone = copy.deepcopy(plain)
        (batch,) = batches(config, loader, 0)
        plain_step(alone, [OPTIMIZERS["sgd"][1](alone[:1].parameters())], batch.x, batch.y)
        for name, tensor in lower_of(simulation, client).items():
            torch.testing.assert_close(tensor, alone.state_dict()[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("preset", ["splitfed_v1", "fedavg"])
@pytest.mark.parametrize("wave", ["{ steps = 1 }", "{ steps = 4 }", "{ epochs = 2 }"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("model", MODELS)
def test_splitfed_v1_is_fedavg_of_the_joined_model(preset: str, wave: str, optimizer: str, model: str) -> None:
    config = config_of(preset, optimizer, model, client__wave=wave)
    copies = [whole_model(config) for _ in range(3)]
    steps = [OPTIMIZERS[optimizer][1](m.parameters()) for m in copies]
    for round in range(config.run.rounds):
        for client, loader in enumerate(loaders(config)):
            for batch in batches(config, loader, round):
                plain_step(copies[client], [steps[client]], batch.x, batch.y)
        mean = dumb_average([m.state_dict() for m in copies], [loader.samples for loader in loaders(config)])
        for m in copies:
            m.load_state_dict(mean)
    simulation = run(config)
    for client in range(3):
        assert_same_bits(joined(simulation, client), copies[client].state_dict())


def test_splitfed_v2_is_plain_training_in_the_drawn_order() -> None:
    """One head for all, client after client in an order drawn each round; lower parts are averaged."""
    config = config_of("splitfed_v2", run__rounds=4)
    simulation = run(config)
    plain = whole_model(config)
    head = plain[1:]
    lowers = [copy.deepcopy(plain[:1]) for _ in range(3)]
    steps = [OPTIMIZERS["sgd"][1](m.parameters()) for m in (*lowers, head)]
    orders = []
    for round in range(config.run.rounds):
        served = [f.shard for f in simulation.trained if f.round == round]
        order = list(dict.fromkeys(served))
        assert served == [client for client in order for _ in range(3)], "a client's whole wave before the next one's"
        orders.append(tuple(order))
        for client in order:
            for batch in batches(config, loaders(config)[client], round):
                plain_step(nn.Sequential(lowers[client], head), [steps[client], steps[3]], batch.x, batch.y)
        mean = dumb_average([m.state_dict() for m in lowers], [loader.samples for loader in loaders(config)])
        for lower in lowers:
            lower.load_state_dict(mean)
    assert {frozenset(order) for order in orders} == {frozenset({0, 1, 2})}
    assert len(set(orders)) > 1, "a new order each round"
    assert_same_bits(joined(simulation), {**lowers[0].state_dict(), **head.state_dict()})


@pytest.mark.parametrize("preset", REDUCING)
def test_dropout_draws_from_seeds_of_its_own(preset: str) -> None:
    """A plain loop seeded the same way, forward pass by forward pass, gives the same bits; the global generator is not read."""
    config = make_config(preset, run__clients=1, model__args="{ hidden = [16, 12], dropout = 0.4 }")
    plain = whole_model(config)
    lower, head = halves(plain, 1)
    step = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9)
    for round in range(config.run.rounds):
        for batch in batches(config, loaders(config)[0], round):
            step.zero_grad()
            torch.manual_seed(seed_of(0, "lower", round, 0, batch.step))
            z = lower(batch.x)
            torch.manual_seed(seed_of(0, "head", round, 0, batch.step))
            F.cross_entropy(head(z), batch.y).backward()
            step.step()
    before = torch.get_rng_state()
    assert_same_bits(joined(run(config)), plain.state_dict())
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("preset", ["splitfed_v1", "splitfed_v2", "fedavg"])
def test_after_aggregation_all_lower_parts_are_equal(preset: str) -> None:
    config = make_config(preset, run__clients=4, model__args=MODELS["batch_norm"])
    simulation = run(config)
    for client in range(1, 4):
        assert_same_bits(lower_of(simulation, client), lower_of(simulation, 0))


def test_lower_parts_that_are_never_exchanged_diverge() -> None:
    simulation = run(make_config("parallel"))
    weights = [lower_of(simulation, client)["hidden1.1.weight"] for client in range(3)]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])
