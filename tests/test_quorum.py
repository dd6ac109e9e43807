"""Lock-step without the slowest: who is too late is told, takes part again, and trains nothing twice."""

from __future__ import annotations

import time

import pytest
from live import ClientThread, FlakyCarrier, serving
from test_equivalence import assert_same_bits
from test_faults import assert_finished, batches_of
from world import World, make_config

from sl_common.messages.facts import ClientLate, RoundEnded, Trained
from sl_common.messages.training import Begin, Late
from sl_common.network.network import Network
from sl_common.protocol import At, Quorum, WaitUntil, Without
from sl_server.core.coordinator import Coordinator
from sl_server.simulation.replay import replay_events

QUORUM = '{ kind = "quorum", fraction = 0.5, timeout_s = 2 }'


def at(now: float, since: float = 0.0) -> At:
    return At(seed=0, now=now, since=since)


def test_everybody_or_enough_of_them_in_time() -> None:
    quorum, four = Quorum(fraction=0.5, timeout_s=2), dict.fromkeys(range(4), 0)
    assert quorum.cohort([3, 1, 0, 2], four, at(0)) == [0, 1, 2, 3]
    assert quorum.cohort([3, 1, 0], four, at(1.9)) == WaitUntil(2)
    assert quorum.cohort([3, 1], four, at(2)) == Without([1, 3], [0, 2])
    assert quorum.cohort([3, 1, 0], four, at(9.9, since=9)) == WaitUntil(11)
    assert quorum.cohort([3], four, at(99)) == []
    assert quorum.cohort([], four, at(99)) == []
    assert quorum.cohort([], {}, at(99)) == []
    assert Quorum(fraction=0.26).cohort([1], four, at(99)) == []
    assert Quorum(fraction=1).cohort([1, 2, 3], four, at(99)) == []


def world_of(preset: str, **more: object) -> World:
    settings: dict[str, object] = {"protocol__barrier": QUORUM, "run__rounds": 3, "eval__every": 0}
    world = World(make_config(preset, **(settings | more)))
    for _ in range(3):
        world.join()
    return world


def begun(world: World) -> World:
    """The first round has begun and every client has its Begin."""
    while sum(isinstance(m, Begin) for _, m in world.said) < 3:
        world.run(until=1)
    return world


@pytest.mark.parametrize("preset", ["parallel", "sglr", "locfedsl", "locfedmix"])
def test_the_wave_goes_on_without_a_slow_client_and_the_next_one_with_it(preset: str) -> None:
    world = begun(world_of(preset))
    world.slow = {"c1"}
    world.run()
    assert world.turn.wake_at == 2
    world.sessions.tick(1.9)
    world.run()
    assert not [f for f in world.facts if isinstance(f, ClientLate)]
    world.sessions.tick(2.0)
    world.run()
    assert [f.client for f in world.facts if isinstance(f, ClientLate)] == ["c1"]
    assert [f.clients for f in world.facts if isinstance(f, RoundEnded)] == [2], "the second round waits for it"
    assert world.coordinator.progress.wave.at.round == 1
    world.slow = set()
    world.run()
    assert_finished(world)
    assert all(client.flow.ended.finished for client in world.clients.values())
    trained = batches_of(world)
    assert len(trained) == len(set(trained))
    of_c1 = [(r, s) for c, r, _, s in trained if c == "c1"]
    assert of_c1 == [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]


def test_a_client_may_be_too_late_again_and_again() -> None:
    """It hears of two waves and of being late in both at once; what it sends of them is ignored; it has the merged weights in the end."""
    world = begun(world_of("parallel", protocol__merge='{ kind = "average" }', run__rounds=4))
    world.slow = {"c1"}
    for now in (2.0, 4.0):
        world.run()
        world.sessions.tick(now)
    world.run()
    late = [f.round for f in world.facts if isinstance(f, ClientLate)]
    assert late == [0, 1]
    world.slow = set()
    world.run()
    assert_finished(world)
    assert [f.round for f in world.facts if isinstance(f, ClientLate)] == [0, 1]
    assert_same_bits(world.lower("c1"), world.lower("c0"))
    begins = [m for name, m in world.said if name == "c1" and isinstance(m, Begin)]
    assert [m.first for m in begins if not m.evaluate] == [0, 0, 0, 3], "nothing of the first two was trained"


def test_batches_that_were_trained_are_not_trained_again() -> None:
    world = begun(world_of("parallel"))
    while not any(isinstance(f, Trained) for f in world.facts):
        world.run(until=1)
    world.slow = {"c1"}
    world.run()
    world.sessions.tick(2.0)
    world.run()
    world.slow = set()
    world.run()
    assert_finished(world)
    (late,) = [f for f in world.facts if isinstance(f, ClientLate)]
    served = sum(f.client == "c1" and f.round == late.round for f in world.facts if isinstance(f, Trained))
    begins = [m for name, m in world.said if name == "c1" and isinstance(m, Begin) and not m.evaluate]
    assert served >= 1
    assert [m.first for m in begins] == [0, served, served + 3]


def test_it_replays() -> None:
    world = begun(world_of("parallel"))
    world.slow = {"c2"}
    world.run()
    world.sessions.tick(2.0)
    world.run()
    world.slow = set()
    world.run()
    assert any(isinstance(m, Late) for _, m in world.said)
    replayed = Coordinator(world.config, Network.build(world.config))
    said = replay_events(replayed, world.events)
    assert [(n, type(m)) for n, m in said] == [(n, type(m)) for n, m in world.said]
    assert replayed.weights_sha256() == world.coordinator.weights_sha256()


def test_a_real_client_that_is_slow() -> None:
    class Slow(FlakyCarrier):
        """Every frame takes its time."""

        def __init__(self, server: str) -> None:
            super().__init__(server, 10**9)

        def send(self, frame: bytes) -> None:
            time.sleep(0.4)
            super().send(frame)

    barrier = '{ kind = "quorum", fraction = 0.5, timeout_s = 0.3 }'
    config = make_config("parallel", protocol__barrier=barrier, run__rounds=3, eval__every=0)
    assert not config.protocol.timing_free
    with serving(config) as live:
        clients = [ClientThread(live.address), ClientThread(live.address), ClientThread(live.address, Slow)]
        for client in clients:
            client.join(60)
    assert [client.error for client in clients] == [None] * 3
    assert all(client.bye.finished for client in clients)
    assert live.sample("sl_late_total") >= 1
    assert len([f for f in live.facts if isinstance(f, RoundEnded)]) == 3
