"""What a gate may ask, shown with a gate that the core does not know: learn with gradients, without, and from recordings."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from world import World, make_config

from sl_client.data import load_data
from sl_client.data.loader import make_loader
from sl_common.config.run_config import RunConfig
from sl_common.config.server_section import Budget
from sl_common.messages.facts import Trained
from sl_common.messages.training import Begin, Directive, Epoch, Newest, Smashed
from sl_common.network.network import Network
from sl_common.protocol import At
from sl_common.seeds import numpy_generator
from sl_common.training.modules import buffers_untouched
from sl_common.value import Value
from sl_server.core.recordings import Recordings

A, B, C = Directive(), Directive(update=False, record=Epoch()), Directive(send=False, update=False)


class Script(Value):
    """Says what it was told to say, round by round."""

    kind: Literal["script"] = "script"
    states: str = "AABCC"

    def decide(self, losses: Sequence[float], at: At) -> Directive:
        assert len(losses) == at.round
        return {"A": A, "B": B, "C": C}[self.states[at.round]]


class GatedWorld(World):
    """The gate stays on the server, where it decides."""

    def __init__(self, config: RunConfig, states: str, seed: int = 0) -> None:
        super().__init__(config, seed)
        self.coordinator._launch.gate = Script(states=states)
        self.plain = config


def gated(preset: str, states: str, clients: int = 1, seed: int = 0, **more: object) -> GatedWorld:
    config = make_config(preset, run__rounds=len(states), run__clients=clients, **more)
    world = GatedWorld(config, states, seed)
    for _ in range(clients):
        world.join()
    world.run()
    assert world.coordinator.ended.finished
    return world


def test_every_state_is_plain_training_of_the_parts_that_learn() -> None:
    """A trains both halves, B the head on fresh batches of a frozen lower part, C the head on B's batches in a drawn order."""
    world = gated("sequential", "AABCC", model__args="{ hidden = [16], batch_norm = true }")
    config = world.plain
    plain = nn.Sequential(OrderedDict(Network.build(config).blocks))
    lower, head = plain[:1], plain[1:]
    lower_step = torch.optim.SGD(lower.parameters(), lr=0.05, momentum=0.9)
    head_step = torch.optim.SGD(head.parameters(), lr=0.05, momentum=0.9)
    loader = make_loader(load_data("digits", None, ()), config.data.partition, 1, 0, 32, 0)

    def train_head(z, y):
        head_step.zero_grad()
        F.cross_entropy(head(z), y).backward()
        head_step.step()

    recorded = []
    for number in range(3):
        for batch in loader.train(number * 3, 3):
            if number < 2:
                lower_step.zero_grad()
                train_head(lower(batch.x), batch.y)
                lower_step.step()
            else:
                with torch.no_grad(), buffers_untouched(lower):
                    recorded.append((lower(batch.x), batch.y))
                train_head(*recorded[-1])
    for number in (3, 4):
        for index in numpy_generator(0, "playback", number, 0).permutation(3):
            train_head(*recorded[index])
    for name, tensor in world.lower("c0").items():
        assert torch.equal(tensor, lower.state_dict()[name]), name
    for name, tensor in world.coordinator.bank.get("head").state().items():
        assert torch.equal(tensor, head.state_dict()[name]), name


@pytest.mark.parametrize("preset", ["sequential", "parallel", "splitfed_v1", "splitfed_v2"])
def test_silent_rounds_send_nothing_and_the_clients_do_not_change(preset: str) -> None:
    until_b, whole = (gated(preset, states, clients=3, eval__every=0) for states in ("AAB", "AABCC"))
    for name in until_b.clients:
        for key, tensor in until_b.lower(name).items():
            assert torch.equal(tensor, whole.lower(name)[key])
    begins = [(m.round, m.evaluate) for _, m in whole.said if isinstance(m, Begin)]
    assert {number for number, evaluate in begins if not evaluate} == {0, 1, 2}
    assert not [m for m in whole.said if isinstance(m[1], Begin) and m[1].directive.update is False and m[1].upload]
    played = [f for f in whole.facts if isinstance(f, Trained) and f.round in (3, 4)]
    assert len(played) == 2 * 3 * 3
    recorded = sorted(f.crc32 for f in whole.facts if isinstance(f, Trained) and f.round == 2)
    for number in (3, 4):
        assert sorted(f.crc32 for f in played if f.round == number) == recorded, "what B sent, byte for byte"


def test_in_b_the_one_begin_carries_the_final_weights() -> None:
    world = gated("sequential", "AB", clients=2, eval__every=0)
    begins = [(name, m) for name, m in world.said if isinstance(m, Begin) and m.round == 1 and not m.evaluate]
    assert [(name, bool(m.weights), m.upload) for name, m in begins] == [("c0", True, ()), ("c1", False, ())]


def test_a_client_that_left_is_not_played_back() -> None:
    config = make_config("parallel", run__rounds=4, run__clients=3, eval__every=0)
    world = GatedWorld(config, "BCCC")
    for _ in range(3):
        world.join()
    while not [f for f in world.facts if isinstance(f, Trained) and f.round == 1]:
        world.run(until=1)
    world.lose(world.clients["c1"])
    world.run()
    assert world.coordinator.ended.finished
    assert {f.client for f in world.facts if isinstance(f, Trained) and f.round >= 2} == {"c0", "c2"}


def test_newest_keeps_as_few_batches_as_hold_so_many_samples() -> None:
    recordings = Recordings(make_config("parallel").codec, Budget())
    for number in range(10):
        batch = Smashed(step=number, z=torch.full((4, 2), float(number)), y=torch.full((4,), number))
        recordings.keep(0, batch, Newest(samples=10))
    kept = list(recordings.play(0, At(seed=0)))
    assert sorted(int(b.y[0]) for b in kept) == [7, 8, 9]
    assert all(torch.equal(b.z, torch.full((4, 2), float(b.y[0]))) for b in kept)
    assert [b.step for b in kept] == [0, 1, 2]
