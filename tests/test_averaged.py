"""Averaged cut gradients and the head's faster rate, by the invariants of their paper's spec (sglr.md g)."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from test_network import federation
from world import make_config

from sl_common.config.run_config import RunConfig
from sl_common.errors import ConfigError
from sl_common.messages.facts import Trained
from sl_common.messages.training import Gradient, Smashed
from sl_common.network.network import Network
from sl_common.protocol import At, Averaged
from sl_server.simulation.simulation import Simulation
from sl_server.telemetry.ledger import Ledger


def simulated(
    fraction: float, lr_power: float, clients: int = 4, preset: str = "sglr", **overrides: object
) -> Simulation:
    settings: dict[str, object] = {"run__clients": clients, "run__rounds": 1, "client__wave": "{ steps = 4 }"}
    if preset == "sglr":
        settings |= {"protocol__head__scatter__fraction": fraction, "protocol__head__lr_power": lr_power}
    simulation = Simulation(make_config(preset, **(settings | overrides)))
    simulation.run()
    return simulation


def lowers(simulation: Simulation) -> list[dict[str, torch.Tensor]]:
    return [seat.bank.get("lower").state() for _, seat in sorted(simulation.seats.items())]


def gradients(clients: int, seed: int = 0) -> dict[int, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {client: torch.randn(4, 3, 2, generator=draw) for client in range(clients)}


AT = At(seed=0, round=2, rounds=10, step=5)


@pytest.mark.parametrize(("fraction", "lr_power"), [(0.0, 0.0), (0.5, 2.0), (1.0, 1.0)])
def test_one_client_is_plain_split_learning(fraction: float, lr_power: float) -> None:
    """g1: for any fraction and power; that of `parallel` is compared with plain PyTorch in test_equivalence.py."""
    plain = simulated(0, 0, clients=1, preset="parallel", data__batch_size=32)
    ours = simulated(fraction, lr_power, clients=1)
    assert ours.coordinator.weights_sha256() == plain.coordinator.weights_sha256()


def test_without_sharing_and_power_it_is_the_parallel_preset() -> None:
    """g2."""
    ours = simulated(0.0, 0.0)
    assert ours.coordinator.weights_sha256() == simulated(0, 0, preset="parallel").coordinator.weights_sha256()


@pytest.mark.parametrize(("clients", "power"), [(1, 2.0), (4, 0.0), (4, 0.5), (9, 1.0)])
def test_the_heads_rate_is_the_base_rate_times_clients_to_the_power(clients: int, power: float) -> None:
    config = make_config("sglr", protocol__head__lr_power=power)
    assert config.protocol.head.lr_factor(clients) == clients**power


@pytest.mark.parametrize("fraction", [0.25, 0.5, 0.75, 1.0])
def test_who_shares_gets_the_same_bits_and_the_others_their_own(fraction: float) -> None:
    """g3, g5."""
    own, scatter = gradients(8), Averaged(fraction=fraction)
    got = scatter.scatter(own, AT)
    sharing = scatter.sharing(list(own), AT)
    assert len(sharing) == int(fraction * 8)
    assert len({got[client].numpy().tobytes() for client in sharing}) == 1
    torch.testing.assert_close(sum(got[c] for c in sharing), sum(own[c] for c in sharing))
    assert all(got[client] is own[client] for client in own.keys() - set(sharing))


@pytest.mark.parametrize(("fraction", "clients"), [(0.25, 6), (0.25, 4), (0.9, 1), (0.0, 5)])
def test_one_alone_or_none_changes_nothing(fraction: float, clients: int) -> None:
    """g4 and f2: the fraction is rounded down, 0.25 of 6 clients is one."""
    own = gradients(clients)
    assert Averaged(fraction=fraction).scatter(own, AT) is own


def test_the_sum_is_as_many_times_the_mean() -> None:
    own = gradients(6)
    mean, total = (Averaged(fraction=0.5, reduction=r).scatter(own, AT) for r in ("mean", "sum"))
    for client in Averaged(fraction=0.5).sharing(list(own), AT):
        torch.testing.assert_close(total[client], 3 * mean[client])


def test_a_fraction_is_the_decimal_that_it_is_written_as() -> None:
    assert len(Averaged(fraction=0.29).sharing(list(range(100)), AT)) == 29


@pytest.mark.parametrize("clients", [2, 4, 8])
def test_equal_gradients_stay_as_they_are(clients: int) -> None:
    """g6."""
    own = dict.fromkeys(range(clients), gradients(1)[0])
    got = Averaged(fraction=1.0).scatter(own, AT)
    assert all(torch.equal(got[client], own[client]) for client in own)


def test_the_heads_step_does_not_depend_on_who_shares() -> None:
    """g7: within one iteration."""
    heads = [
        simulated(f, 0.5, client__wave="{ steps = 1 }").coordinator.bank.get("head").digest() for f in (0.0, 0.5, 1.0)
    ]
    assert len(set(heads)) == 1


def test_the_draw_is_seeded_fresh_each_step_and_changes_no_other_draw() -> None:
    """g8."""
    clients = list(range(10))
    steps = [At(seed=s, round=r, step=n) for s in (0, 1) for r in (0, 1) for n in range(5)]
    drawn = [Averaged(fraction=0.5).sharing(clients, at) for at in steps]
    assert drawn == [Averaged(fraction=0.5).sharing(clients, at) for at in steps]
    assert len({tuple(one) for one in drawn}) > 15
    first = [sent(simulated_first_batches(fraction)) for fraction in (0.0, 0.5)]
    assert first[0] == first[1]


def simulated_first_batches(fraction: float) -> list[Smashed]:
    """What every client sends first, and the labels it sends later: the order of the data."""
    config = make_config("sglr", run__clients=3, run__rounds=1, protocol__head__scatter__fraction=fraction)
    found: list[Smashed] = []
    simulation = Simulation(config, count=lambda _, sent: found.append(sent) if isinstance(sent, Smashed) else None)
    simulation.run()
    return [batch for batch in found if batch.train]


def sent(batches: list[Smashed]) -> list[tuple]:
    return [(b.step, b.y.tolist(), b.z.sum().item() if b.step == 0 else None) for b in batches]


def test_lower_segments_stay_the_clients_own() -> None:
    """g9: no hidden averaging."""
    digests = {tuple(t.numpy().tobytes() for t in state.values()) for state in lowers(simulated(1.0, 0.5))}
    assert len(digests) == 4


def test_the_scalar_vector() -> None:
    """g10: f(x) = a·x, server w·s, loss ½(ws − y)², x = (1, 2), y = 0, a = w = 1, lr .1, own-mean scaling."""
    x = torch.tensor([1.0, 2.0])
    own = {client: x[client].reshape(1, 1) for client in range(2)}  # w·(w·a·x − y)
    plain = [1 - 0.1 * (own[c] * x[c]).item() for c in range(2)]
    shared = Averaged(fraction=1.0).scatter(own, AT)
    assert plain == pytest.approx([0.9, 0.6])
    assert [1 - 0.1 * (shared[c] * x[c]).item() for c in range(2)] == pytest.approx([0.85, 0.70])
    halved = Averaged(fraction=1.0).scatter({c: g / 2 for c, g in own.items()}, AT)  # global mean
    assert [1 - 0.1 * (halved[c] * x[c]).item() for c in range(2)] == pytest.approx([0.925, 0.85])


def test_bytes_up_do_not_depend_on_fraction_or_power() -> None:
    """g12; and as every stream is of one client, nor do those down."""
    found = []
    for fraction, power in ((0.0, 0.0), (0.5, 0.5), (1.0, 1.0)):
        wire = {"up": 0, "down": 0}

        def count(direction: str, sent: object, wire: dict[str, int] = wire) -> None:
            if isinstance(sent, Smashed) and sent.train:
                wire[direction] += 4 * sent.z.numel()
            if isinstance(sent, Gradient) and sent.dz is not None:
                wire[direction] += 4 * sent.dz.numel()

        config = make_config("sglr", protocol__head__scatter__fraction=fraction, protocol__head__lr_power=power)
        Simulation(config, count=count).run()
        found.append(wire)
    assert found[0] == found[1] == found[2]
    assert found[0]["up"] == found[0]["down"] == 2 * 3 * 3 * 32 * 16 * 4  # rounds, clients, steps, batch, cut, float32


@pytest.mark.parametrize(
    ("phase", "on"),
    [("always", range(10)), ("first", range(6)), ("last", range(4, 10))],
)
def test_a_phase_is_a_part_of_the_rounds(phase: str, on: range) -> None:
    scatter = Averaged(fraction=1.0, phase=phase, share=0.6)
    active = [r for r in range(10) if scatter.sharing([0, 1], At(seed=0, round=r, rounds=10))]
    assert active == list(on)


def test_batches_of_different_sizes_need_to_be_asked_for() -> None:
    own = {0: torch.ones(4, 3), 1: torch.ones(2, 3) * 3}
    with pytest.raises(ConfigError, match="batches of 2 and 4 samples cannot be averaged by position"):
        Averaged(fraction=1.0).scatter(own, AT)
    got = Averaged(fraction=1.0, unequal="mean").scatter(own, AT)
    assert {client: tuple(g.shape) for client, g in got.items()} == {0: (4, 3), 1: (2, 3)}
    assert all(bool((g == 2).all()) for g in got.values())


@pytest.mark.parametrize(("unequal", "batches"), [("error", {14, 15}), ("mean", {15})])
def test_clients_drop_their_last_batch_only_where_positions_are_averaged(unequal: str, batches: set[int]) -> None:
    """479, 479 and 480 samples of digits, batches of 32."""
    config = make_config(
        "sglr", protocol__head__scatter__unequal=f'"{unequal}"', client__wave="{ epochs = 1 }", run__rounds=1
    )
    simulation = Simulation(config)
    simulation.run()
    assert simulation.coordinator.ended.finished
    assert {seat.data.batches for seat in simulation.seats.values()} == batches


@pytest.mark.parametrize("fraction", [-0.1, 1.1])
def test_a_fraction_is_between_0_and_1(fraction: float) -> None:
    with pytest.raises(ValidationError, match="fraction"):
        Averaged(fraction=fraction)


def test_what_collapsed_in_the_paper_is_allowed_with_a_warning() -> None:
    risky = make_config("sglr", run__clients=10, protocol__head__lr_power=1.5)
    assert "training collapsed there in the paper" in risky.cautions[0]
    assert make_config("sglr", run__clients=10).cautions == []
    always = make_config("sglr", run__clients=10, protocol__head__scatter__fraction=1.0)
    assert "at most 0.75, or a phase" in always.cautions[0]
    assert RunConfig.from_json(risky.to_json()).cautions == risky.cautions


def test_the_codes_loss_is_binary_cross_entropy_of_the_softmax() -> None:
    """f7: averaged over (C·b) × classes entries, by hand."""
    config = make_config("sglr", run__clients=2, run__rounds=1, protocol__head__loss='"softmax_bce"')
    head = config.protocol.head
    draw = torch.Generator().manual_seed(0)
    logits, y = torch.randn(6, 10, generator=draw), torch.randint(10, (6,), generator=draw)
    total = 0.0
    for row, label in zip(logits.double().tolist(), y.tolist(), strict=True):
        powers = [math.exp(value) for value in row]
        for place, power in enumerate(powers):
            likely = power / sum(powers)
            total -= math.log(likely if place == label else 1 - likely)
    assert head._mean(logits, y).item() == pytest.approx(total / 60, rel=1e-5)
    simulation = Simulation(config)
    losses = [f.loss for f in simulation.facts() if isinstance(f, Trained)]
    assert len(losses) == 6
    assert all(0 < loss < 0.6 for loss in losses), "a tenth of the cross-entropy's, about 0.33 at first"


def test_clients_may_begin_with_weights_of_their_own(tmp_path: Path) -> None:
    """f8: as the authors' code; nothing of the lower segment comes down."""
    settings: dict[str, object] = {"client__initial": '"own"', "run__rounds": 1}
    config = make_config("sglr", **settings)
    begun = [Network.build(config, shard=shard).lower.state_dict() for shard in (0, 0, 1)]
    assert all(torch.equal(begun[0][k], begun[1][k]) for k in begun[0])
    assert not any(torch.equal(begun[0][k], begun[2][k]) for k in begun[0])
    ledger = Ledger()
    Simulation(config, count=ledger.count).run()
    assert ledger.payload["down", "weights"] == 0
    with pytest.raises(ConfigError, match=r"client.initial = 'own' needs protocol.merge.kind keep, not average"):
        make_config("splitfed_v2", **settings)
    simulation = Simulation(config)
    simulation.run()
    assert federation(config, tmp_path / "run")["weights_sha256"] == simulation.coordinator.weights_sha256()
    alike = Simulation(make_config("sglr", run__rounds=1))
    alike.run()
    assert simulation.coordinator.weights_sha256() != alike.coordinator.weights_sha256()
