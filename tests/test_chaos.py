"""A seeded adversary: servers and clients die, streams break, alignments end when they like; nothing is lost and nothing shows.

With `run.on_lost = "redo"` every run ends with the bits of an undisturbed one and every batch counts once. The faults are injected into a
whole federation in memory (world.py), whose network, disks and processes are the only parts that are not real; test_kill.py does the same
to a few processes.
"""

from __future__ import annotations

import random
from collections import Counter

import pytest
from test_faults import assert_finished, batches_of, simulated_sha
from test_restart import RestartWorld
from world import make_config

from sl_common.presets import PRESETS

FAULTS = 45  # for each preset


class Adversary:
    """Does one thing after the other to a running federation."""

    def __init__(self, world: RestartWorld, seed: int) -> None:
        self.world = world
        self.random = random.Random(seed)
        self.done: Counter[str] = Counter()

    def strike(self) -> None:
        what = self.random.choices(["cut", "kill the server", "kill a client", "cut all"], [5, 2, 2, 1])[0]
        world, name = self.world, self.random.choice(sorted(self.world.clients))
        match what:
            case "cut":
                world.cut(world.clients[name])
            case "cut all":
                for client in world.clients.values():
                    world.cut(client)
            case "kill the server":
                world.crash()
            case "kill a client":
                world.kill_client(name)
        self.done[what] += 1


@pytest.mark.parametrize("preset", PRESETS)
def test_whatever_dies_the_result_is_that_of_an_undisturbed_run(preset: str) -> None:
    config = make_config(preset, run__rounds=6, run__on_lost='"redo"', model__args="{ hidden = [16], dropout = 0.2 }")
    want, total = simulated_sha(config), Counter[str]()
    for seed in range(100):
        world = RestartWorld(config, seed)
        for _ in range(config.run.clients):
            world.join()
        adversary = Adversary(world, seed)
        for _ in range(15):
            world.run(until=adversary.random.randrange(3, 60))
            if world.coordinator.ended is not None:
                break
            adversary.strike()
        world.run()
        assert_finished(world)
        assert world.coordinator.weights_sha256() == want, (seed, adversary.done)
        assert len(batches_of(world)) == len(set(batches_of(world)))
        total += adversary.done
        if total.total() >= FAULTS:
            break
    assert total.total() >= FAULTS
    assert min(total[what] for what in ("cut", "kill the server", "kill a client")) >= 1
