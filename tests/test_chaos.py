"""A seeded adversary: servers and clients die, streams break, alignments end when they like; nothing is lost and nothing shows.

With `run.on_lost = "redo"` every run ends with the bits of an undisturbed one and every batch counts once. The faults are injected into a
whole federation in memory (world.py), whose network, disks and processes are the only parts that are not real; test_links.py does the
same to processes and the links between them.
"""

from __future__ import annotations

import random
from collections import Counter

import pytest
from tally import Faults
from test_faults import assert_finished, batches_of, simulated_sha
from test_restart import RestartWorld
from world import make_config

from sl_common.config.presets import PRESETS

FAULTS = 45  # for each preset


class Adversary:
    """Does one thing after the other to a running federation."""

    def __init__(self, world: RestartWorld, seed: int, faults: Faults) -> None:
        self.world, self.faults = world, faults
        self.random = random.Random(seed)
        self.done: Counter[str] = Counter()

    def strike(self) -> None:
        what = self.random.choices(["cut", "server kill", "client kill", "cut all"], [5, 2, 2, 1])[0]
        world, name = self.world, self.random.choice(sorted(self.world.clients))
        match what:
            case "cut":
                world.cut(world.clients[name])
            case "cut all":
                for client in world.clients.values():
                    world.cut(client)
            case "server kill":
                world.crash()
            case "client kill":
                world.kill_client(name)
        self.done[what] += 1
        self.faults.tell("in memory", "cut" if what == "cut all" else what)


@pytest.mark.parametrize("preset", PRESETS)
def test_whatever_dies_the_result_is_that_of_an_undisturbed_run(preset: str, faults: Faults) -> None:
    config = make_config(preset, run__rounds=6, run__on_lost='"redo"', model__args="{ hidden = [16], dropout = 0.2 }")
    want, total = simulated_sha(config), Counter[str]()
    for seed in range(100):
        world = RestartWorld(config, seed)
        for _ in range(config.run.clients):
            world.join()
        adversary = Adversary(world, seed, faults)
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
    assert min(total[what] for what in ("cut", "server kill", "client kill")) >= 1
