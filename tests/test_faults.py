"""Whatever the network does: any timing, streams cut anywhere, clients that leave, return or come late."""

from __future__ import annotations

import pytest
import torch
from world import World, make_config, run_world

from sl_common.config.presets import PRESETS
from sl_common.messages.facts import ClientLeft, RoundEnded, RunEnded, Trained
from sl_common.messages.training import Begin
from sl_common.protocol import Each
from sl_common.tensors import raw_bytes
from sl_common.wire import eventlog
from sl_server.core.coordinator import Coordinator
from sl_server.simulation.replay import replay_log
from sl_server.simulation.simulation import Simulation
from sl_server.storage.eventlog import EventLog


def simulated_sha(config) -> str:
    simulation = Simulation(config)
    simulation.run()
    assert simulation.coordinator.ended.finished
    return simulation.coordinator.weights_sha256()


def assert_finished(world: World) -> None:
    assert world.coordinator.ended is not None, "the run is stuck"
    assert world.coordinator.ended.finished
    assert sum(isinstance(f, RunEnded) for f in world.facts) == 1


def batches_of(world: World) -> list[tuple]:
    return [(f.client, f.round, f.wave, f.step) for f in world.facts if isinstance(f, Trained)]


@pytest.mark.parametrize("preset", PRESETS)
def test_any_timing_gives_the_same_bits(preset: str) -> None:
    config = make_config(preset, model__args="{ hidden = [16], batch_norm = true, dropout = 0.2 }")
    assert config.protocol.timing_free
    want = simulated_sha(config)
    for seed in range(4):
        world = run_world(config, seed)
        assert_finished(world)
        assert world.coordinator.weights_sha256() == want


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("every", [2, 3, 5, 7, 13])
def test_streams_cut_at_every_kth_frame_give_the_same_bits(preset: str, every: int) -> None:
    """Both directions; the activations of this model span several frames, so cuts fall between their chunks too."""
    config = make_config(preset, run__clients=2, model__args="{ hidden = [9000] }", client__wave="{ steps = 2 }")
    world = run_world(config, seed=every, cut_every=every)
    assert_finished(world)
    assert world.cuts >= 3
    assert world.coordinator.weights_sha256() == simulated_sha(config)
    assert len(batches_of(world)) == len(set(batches_of(world)))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("after", range(1, 21))
def test_a_client_may_leave_after_any_of_its_first_messages(preset: str, after: int) -> None:
    config = make_config(preset, client__wave="{ steps = 4 }", run__rounds=4)
    world = World(config, seed=after)
    world.leave_after = {"c1": after}
    for _ in range(3):
        world.join()
    if after == 1:  # it was never in a wave: two clients are too few to begin with
        world.run()
        assert world.coordinator.ended is None
        world.join("late")
        world.run()
    else:
        world.run()
    assert_finished(world)
    left = [f.client for f in world.facts if isinstance(f, ClientLeft)]
    gone = world.clients["c1"]
    assert left == (["c1"] if gone.gone else [])
    assert len(batches_of(world)) == len(set(batches_of(world))), "no batch is trained twice"
    others = [name for name, client in world.clients.items() if not client.gone]
    assert len(others) >= 2
    for name in others:
        assert world.clients[name].flow.ended.finished
    rounds = [f for f in world.facts if isinstance(f, RoundEnded)]
    assert [f.round for f in rounds] == [0, 1, 2, 3]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_late_client_takes_part_from_the_next_round(preset: str) -> None:
    config = make_config(preset, data__shards=4, run__rounds=3)
    world = World(config)
    for _ in range(3):
        world.join()
    world.run(until=40)
    assert world.coordinator.ended is None
    before = {f.round for f in world.facts if isinstance(f, RoundEnded)}
    late = world.join()
    assert late.session.client == "c3"
    world.run()
    assert_finished(world)
    rounds = {f.round: f.clients for f in world.facts if isinstance(f, RoundEnded)}
    assert rounds[0] == 3
    assert rounds[2] == 4
    assert len(before) < 3
    assert late.flow.ended.finished


def test_a_late_clients_head_learns_at_the_rate_of_the_round() -> None:
    """Its copy of the head is made when it first begins, in a round whose rate is no longer the base rate."""
    schedule = '{ kind = "step", milestones = [1], gamma = 0.5 }'
    world = World(make_config("splitfed_v1", data__shards=4, server__schedule=schedule, eval__every=0))
    for _ in range(3):
        world.join()
    world.run(until=20)
    world.join()
    world.run()
    assert_finished(world)
    assert [f.clients for f in world.facts if isinstance(f, RoundEnded)] == [3, 4]
    rates = {s.optimizer.param_groups[0]["lr"] for s in world.coordinator.bank.copies("head").values()}
    assert rates == {0.025}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_client_that_comes_back_has_its_shard_and_takes_part_again(preset: str) -> None:
    world = World(make_config(preset, run__rounds=4))
    for _ in range(3):
        world.join()
    world.run(until=50)
    world.lose(world.clients["c1"])
    world.run(until=15)
    again = world.join("c1")
    world.run()
    assert_finished(world)
    assert again.seat.shard == 1
    assert again.flow.ended.finished
    assert [f.clients for f in world.facts if isinstance(f, RoundEnded)][-1] == 3


def test_a_new_life_under_a_live_name_replaces_the_old_one_at_once() -> None:
    world = World(make_config("parallel", run__rounds=3))
    for _ in range(3):
        world.join()
    world.run(until=40)
    old = world.clients["c2"]
    world.join("c2")
    assert old.session.replaced
    assert old.session.closed
    world.run()
    assert_finished(world)
    assert [f.client for f in world.facts if isinstance(f, ClientLeft)] == ["c2"]


def test_everybody_leaves_and_the_run_waits_for_somebody() -> None:
    world = World(make_config("splitfed_v1", run__rounds=3))
    for _ in range(3):
        world.join()
    world.run(until=40)
    for client in list(world.clients.values()):
        world.lose(client)
    world.run()
    assert world.coordinator.ended is None
    for name in ("c0", "c1", "c2"):
        world.join(name)
    world.run()
    assert_finished(world)


# --- the coordinator is a state machine


def replayed(world: World, path, facts: list | None = None) -> tuple[Coordinator, list]:
    log = EventLog(path, world.config)
    for entry in world.events:
        log.append(entry)
    log.close()
    said: list = []
    facts = [] if facts is None else facts
    found = replay_log(path, watch=lambda _entry, spoken, _reader: said.extend(spoken), on_fact=facts.append)
    return found.coordinator, said


def said_by(said: list) -> list:
    """Comparable: tensors as their bytes."""
    return [
        (
            name,
            type(m).__name__,
            getattr(m, "step", None),
            bytes(raw_bytes(dz)) if (dz := getattr(m, "dz", None)) is not None else None,
        )
        for name, m in said
    ]


@pytest.mark.parametrize("preset", PRESETS)
def test_the_same_events_give_the_same_messages_and_weights(preset: str, tmp_path) -> None:
    world = World(make_config(preset, data__shards=4, run__rounds=3), seed=3)
    for _ in range(3):
        world.join()
    world.run(until=45)
    world.lose(world.clients["c1"])
    world.join()
    world.run()
    assert_finished(world)
    facts: list = []
    twin, said = replayed(world, tmp_path / "events.log", facts)
    assert said_by(said) == said_by(world.said)
    assert twin.weights_sha256() == world.coordinator.weights_sha256()
    assert facts == world.facts


def test_a_shared_head_that_takes_whoever_comes_replays_to_the_same_bits(tmp_path) -> None:
    """With `each` on a shared head the order of arrival decides; the recorded log reproduces it."""
    config = make_config(
        "parallel", protocol__barrier='{ kind = "each" }', model__args="{ hidden = [16], dropout = 0.3 }"
    )
    assert isinstance(config.protocol.barrier, Each)
    assert not config.protocol.timing_free
    seen = set()
    for seed in range(3):
        world = run_world(config, seed)
        twin, _said = replayed(world, tmp_path / f"{seed}.log")
        assert twin.weights_sha256() == world.coordinator.weights_sha256()
        seen.add(twin.weights_sha256())
    assert len(seen) > 1, "the order matters, or this test shows nothing"


def test_an_event_log_cut_short_replays_as_far_as_it_goes() -> None:
    world = run_world(make_config("parallel", run__rounds=1))
    whole = b"".join(eventlog.dump(*entry) for entry in world.events)
    for cut in (0, 5, len(whole) // 3, len(whole) - 1):
        events = list(eventlog.load_events(whole[:cut]))
        assert len(events) < len(world.events)
        assert [name for name, _ in events] == [name for name, _ in world.events[: len(events)]]
    assert len(list(eventlog.load_events(whole))) == len(world.events)


def test_messages_of_a_wave_are_written_in_any_arrival_order_but_trained_in_one() -> None:
    """Lock-step cohorts are sorted by shard, whoever came first."""
    worlds = [run_world(make_config("parallel"), seed) for seed in range(3)]
    arrivals = {tuple(name for name, event in w.events if type(event).__name__ == "Smashed") for w in worlds}
    assert len(arrivals) > 1
    assert len({tuple(batches_of(w)) for w in worlds}) == 1


def test_weights_are_not_sent_to_a_client_that_holds_them() -> None:
    """One client alone: the average of its weights is its weights, so only the first Begin carries any."""
    for preset in ("parallel", "splitfed_v1"):
        world = World(make_config(preset, run__clients=1, run__rounds=3))
        world.join()
        world.run()
        begins = [message for _, message in world.said if isinstance(message, Begin)]
        assert [bool(begin.weights) for begin in begins] == [True] + [False] * 5


def test_torch_has_one_thread() -> None:
    assert torch.get_num_threads() == 1
