"""Rounds without gradients and rounds without traffic, by the invariants of their paper's spec (async_fp8.md g)."""

from __future__ import annotations

import itertools

import pytest
from pydantic import ValidationError
from world import World, make_config

from sl_common.errors import ConfigError
from sl_common.messages.facts import ClientLeft, Trained
from sl_common.messages.training import Begin, Gradient, Smashed
from sl_common.protocol import At, LossGate, Periodic
from sl_server.simulation.simulation import Simulation

LOSSES = [2.0, 1.5, 1.45, 1.44, 1.30, 1.25, 1.22, 1.19, 1.16, 1.13, 1.10]


def walk(gate: LossGate, losses: list[float]) -> str:
    return "".join(gate.states(losses)[: len(losses)])


def letter(directive) -> str:
    return "A" if directive.update else "B" if directive.send else "C"


def simulated(rounds: int = 6, clients: int = 2, preset: str = "loss_async", **overrides: object) -> Simulation:
    simulation = Simulation(make_config(preset, run__rounds=rounds, run__clients=clients, eval__every=0, **overrides))
    simulation.facts_seen = simulation.run()
    return simulation


# --- the gate


def test_the_worked_walk() -> None:
    """g7, with its costs 2·n_A + n_B: 13 and 10."""
    last_a = walk(LossGate(threshold=0.1), LOSSES)
    previous = walk(LossGate(threshold=0.1, reference="previous"), LOSSES)
    assert last_a == "AAABCABCABC"
    assert previous == "AAABCABCCCC"
    costs = [2 * states.count("A") + states.count("B") for states in (last_a, previous)]
    assert costs == [13, 10]
    assert [22 / cost for cost in costs] == pytest.approx([1.692, 2.2], abs=5e-4)


@pytest.mark.parametrize(
    ("n_a", "n_b", "factor", "reduction"), [(8, 8, 1, 16.67), (13, 13, 1, 10.26), (5, 5, 4, 106.67)]
)
def test_counts_give_the_papers_reductions(n_a: int, n_b: int, factor: int, reduction: float) -> None:
    """g8: 2T/(2·n_A + n_B) of T = 200 epochs, times 4 with 8-bit floats."""
    assert factor * 2 * 200 / (2 * n_a + n_b) == pytest.approx(reduction, abs=5e-3)


@pytest.mark.parametrize(("k", "reduction"), [(4, 2.67), (5, 3.33), (10, 6.67), (20, 13.33)])
def test_the_periodic_baseline_has_the_papers_reductions(k: int, reduction: float) -> None:
    """async_fp8.md c: one A, one B and k - 2 C of every k."""
    states = [letter(Periodic(k=k).decide([], At(seed=0, round=r))) for r in range(200)]
    assert 400 / (2 * states.count("A") + states.count("B")) == pytest.approx(reduction, abs=5e-3)
    assert states[: k + 1] == ["A", "B", *"C" * (k - 2), "A"]


def test_a_threshold_of_0_is_always_a() -> None:
    """g1, of the gate; the weights are compared below."""
    assert set(walk(LossGate(threshold=0.0), [1.0] * 9)) == {"A"}


def test_without_a_limit_it_falls_silent() -> None:
    """g2: no reference after the first round, so A follows it."""
    assert walk(LossGate(threshold=1e300), LOSSES) == "AABCCCCCCCC"


def test_only_the_drawn_transitions_occur() -> None:
    """g3: over every walk of four kinds of steps, for both references."""
    allowed = {"AA", "AB", "BA", "BC", "CA", "CC"}
    for steps in itertools.product((0.0, 0.06, -0.06, 0.2), repeat=6):
        losses = list(itertools.accumulate(steps, initial=1.0))
        for reference in ("last_A", "previous"):
            states = walk(LossGate(threshold=0.1, reference=reference), losses)
            assert {a + b for a, b in itertools.pairwise(states)} <= allowed


def test_a_rise_calls_the_clients_back_too() -> None:
    assert walk(LossGate(threshold=0.1), [1.0, 1.0, 1.0, 1.5, 1.5]) == "AABCA"


@pytest.mark.parametrize("threshold", [-0.1, float("nan")])
def test_a_threshold_is_not_negative(threshold: float) -> None:
    with pytest.raises(ValidationError, match="threshold"):
        LossGate(threshold=threshold)


def test_a_period_is_at_least_1() -> None:
    with pytest.raises(ValidationError, match="k"):
        Periodic(k=0)


# --- whole runs


def test_with_a_threshold_of_0_it_is_plain_split_learning() -> None:
    """g1: bit for bit; that `sequential` is plain PyTorch stands in test_equivalence.py."""
    ours = simulated(protocol__gate__threshold=0.0)
    assert ours.coordinator.weights_sha256() == simulated(preset="sequential").coordinator.weights_sha256()


def traffic(simulation_of: dict[str, object]) -> dict[tuple[str, int], list[int]]:
    """(direction, round) -> payload bytes of each training tensor."""
    sent: dict[tuple[str, int], list[int]] = {}
    at = {"round": 0}

    def count(_direction: str, message: object) -> None:
        if isinstance(message, Begin):
            at["round"] = message.round
        if isinstance(message, Smashed) and message.train:
            sent.setdefault(("up", message.round), []).append(message.z.numel())
        if isinstance(message, Gradient) and message.dz is not None:
            sent.setdefault(("down", at["round"]), []).append(message.dz.numel())

    config = make_config("loss_async", run__rounds=6, run__clients=2, eval__every=0, **simulation_of)
    Simulation(config, count=count).run()
    return sent


@pytest.mark.parametrize("codec", [None, '{ kind = "float8" }'])
def test_bytes_follow_from_the_states(codec: str | None) -> None:
    """g5: up (n_A + n_B)·N·numel, down n_A·N·numel, of 4 bytes or 1; nothing at all in C."""
    codecs = {} if codec is None else {"codec__up": codec, "codec__down": codec}
    gate = {"protocol__gate__threshold": 1e300}  # A A B C C C
    sent = traffic({**gate, **codecs})
    elements = 2 * 3 * 32 * 16  # clients, steps, batch, cut
    assert {key: sum(found) for key, found in sent.items()} == {
        ("up", 0): elements,
        ("down", 0): elements,
        ("up", 1): elements,
        ("down", 1): elements,
        ("up", 2): elements,
    }
    wire: dict[str, int] = {"up": 0, "down": 0}

    def count(direction: str, frame: object) -> None:
        if hasattr(frame, "tally"):
            wire[direction] += sum(n for kind, n in frame.tally if kind in ("smashed", "gradient"))

    Simulation(
        make_config("loss_async", run__rounds=6, run__clients=2, eval__every=0, **gate, **codecs), count=count
    ).run()
    width = 4 if codec is None else 1
    headers = 80  # of each message, at most
    assert 3 * elements * width <= wire["up"] <= 3 * elements * width + 18 * headers
    assert 2 * elements * width <= wire["down"] <= 2 * elements * width + 18 * headers


def test_clients_do_not_change_in_b_and_c() -> None:
    """g4: parameters, buffers and optimiser state."""
    states = []
    for rounds in (2, 3, 6):
        simulation = simulated(
            rounds, protocol__gate__threshold=1e300, model__args="{ hidden = [16], batch_norm = true }"
        )
        segments = [seat.bank.get("lower") for _, seat in sorted(simulation.seats.items())]
        states.append([(s.digest(), repr(s.optimizer.state_dict())) for s in segments])
    last = states[1:]
    assert last[0] == last[1]


def test_c_learns_from_what_b_sent_byte_for_byte() -> None:
    """g6: the multiset of pairs of every C round is the whole of B's."""
    simulation = simulated(protocol__gate__threshold=1e300, codec__up='{ kind = "float8" }')
    by_round: dict[int, list[str]] = {}
    for fact in simulation.facts_seen:
        if isinstance(fact, Trained):
            by_round.setdefault(fact.round, []).append(fact.crc32)
    assert sorted(by_round[2]) == sorted(by_round[3]) == sorted(by_round[4]) == sorted(by_round[5])
    assert by_round[3] != by_round[4], "the order is drawn anew"


def test_a_newcomer_in_a_silent_round_waits_for_the_next_that_is_not() -> None:
    config = make_config(
        "loss_async", run__rounds=5, run__clients=2, data__shards=3, eval__every=0, protocol__gate__threshold=1e300
    )
    world = World(config, 0)
    for _ in range(2):
        world.join()
    while not [f for f in world.facts if isinstance(f, Trained) and f.round == 3]:
        world.run(until=1)
    world.join()
    world.run()
    assert world.coordinator.ended.finished
    assert not [f for f in world.facts if isinstance(f, ClientLeft)]
    assert {f.client for f in world.facts if isinstance(f, Trained)} == {"c0", "c1"}


# --- what the records may take


def test_records_beyond_their_budget_end_the_run_with_the_key() -> None:
    with pytest.raises(ConfigError, match=r"server.recordings.memory_mb = 0.001.*server.recordings.disk_mb = 0"):
        simulated(protocol__gate__threshold=1e300, server__recordings="{ memory_mb = 0.001 }")


def test_records_that_spill_to_disk_give_the_same_weights() -> None:
    gate = {"protocol__gate__threshold": 1e300}
    spilled = simulated(**gate, server__recordings="{ memory_mb = 0.001, disk_mb = 100 }")
    assert spilled.coordinator.recordings.spilled_bytes > 0
    assert spilled.coordinator.weights_sha256() == simulated(**gate).coordinator.weights_sha256()


def test_disk_has_a_budget_too() -> None:
    with pytest.raises(ConfigError, match=r"server.recordings.disk_mb = 0.001"):
        simulated(protocol__gate__threshold=1e300, server__recordings="{ memory_mb = 0.001, disk_mb = 0.001 }")


def test_a_client_that_leaves_gives_its_room_back() -> None:
    config = make_config("loss_async", run__rounds=5, run__clients=2, eval__every=0, protocol__gate__threshold=1e300)
    world = World(config, 0)
    for _ in range(2):
        world.join()
    while not [f for f in world.facts if isinstance(f, Trained) and f.round == 3]:
        world.run(until=1)
    before = world.coordinator.recordings.memory_bytes
    world.lose(world.clients["c0"])
    assert world.coordinator.recordings.memory_bytes == before / 2
