"""Numbers that poison a step or a merge cost their own client its place, and nobody else anything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from live import ClientThread, serving
from test_faults import assert_finished, replayed, said_by
from world import World, make_config, segment_of

from sl_client.data import Data
from sl_common.config.presets import PRESETS
from sl_common.config.run_config import RunConfig
from sl_common.errors import Diverged, Refused, WireError
from sl_common.messages.facts import ClientLeft, RoundEnded, RunEnded, Trained
from sl_common.messages.training import Done, Smashed
from sl_common.protocol import Record
from sl_common.protocol.align import Alignment, AlignmentSamples
from sl_common.protocol.at import At
from sl_common.protocol.merge import Average
from sl_common.training.optim import Sgd
from sl_common.training.segment import Segment
from sl_server.core.coordinator import Coordinator
from sl_server.core.merged import checked_merge

OFF = {"server__guard__activations": '"off"', "server__guard__weights": '"off"'}
HUGE = 3e38
SENDING = [name for name, preset in PRESETS.items() if preset.protocol.learner.exchange != "nothing"]

Change = Callable[[Smashed], Smashed]


def config(preset: str, **overrides: object) -> RunConfig:
    return make_config(preset, **{"run__rounds": 3} | OFF | overrides)


def filled(batch: Smashed) -> Smashed:
    return replace(batch, z=torch.full_like(batch.z, HUGE))


def is_target(said: object, round: int, step: int) -> bool:
    return isinstance(said, Smashed) and said.train and (said.round, said.step) == (round, step)


def attacked(
    run: RunConfig, change: Change | None, *, round: int = 1, step: int = 0, who: str = "c1", seed: int = 0
) -> World:
    """A run in which one client changes one of its batches; without a change it is gone instead of sending it."""
    world = World(run, seed)
    for _ in range(3):
        world.join()
    evil = world.clients[who]
    pack = evil.endpoint.pack

    def packed(said: object) -> list:
        if not is_target(said, round, step) or evil.gone:
            return pack(said)
        if change is None:
            world.lose(evil)
            return []
        return pack(change(said))

    evil.endpoint.pack = packed
    return world.run()


def left_of(world: World) -> list[tuple[str, str]]:
    return [(fact.client, fact.reason) for fact in world.facts if isinstance(fact, ClientLeft)]


def assert_only_the_poisoner_is_gone(world: World, who: str = "c1") -> None:
    assert_finished(world)
    ((client, reason),) = left_of(world)
    assert client == who
    assert reason.startswith("broke the protocol: its batch ")
    assert world.expelled.keys() == {who}
    assert [name for name, one in world.clients.items() if one.flow.ended is not None] == [
        name for name in world.clients if name != who
    ]


@pytest.mark.parametrize("preset", SENDING)
@pytest.mark.parametrize("args", ["{ hidden = [16] }", "{ hidden = [16, 16], batch_norm = true, dropout = 0.2 }"])
@pytest.mark.parametrize("round", [0, 1])
def test_a_poisoned_batch_costs_its_client_alone(preset: str, args: str, round: int) -> None:
    """The others end with the bits of a run which that client left in that moment; BatchNorm has seen nothing of it."""
    run = config(preset, model__args=args)
    world = attacked(run, filled, round=round)
    assert_only_the_poisoner_is_gone(world)
    without = attacked(run, None, round=round)
    assert_finished(without)
    assert world.coordinator.weights_sha256() == without.coordinator.weights_sha256()
    trained = [
        [(f.client, f.round, f.step, f.crc32, f.loss) for f in w.facts if isinstance(f, Trained)]
        for w in (world, without)
    ]
    assert sorted(trained[0]) == sorted(trained[1])


@pytest.mark.parametrize("preset", SENDING)
def test_a_replay_blames_the_same_client(preset: str, tmp_path) -> None:
    world = attacked(config(preset), filled, seed=3)
    assert_only_the_poisoner_is_gone(world)
    coordinator, said = replayed(world, tmp_path / "events.log")
    assert coordinator.weights_sha256() == world.coordinator.weights_sha256()
    assert said_by(said) == said_by(world.said)


@pytest.mark.parametrize("preset", ["parallel", "sglr", "locfedmix"])
def test_two_of_a_cohort_are_found(preset: str) -> None:
    run = config(preset)

    def both(change: Change | None) -> World:
        world = World(run)
        for _ in range(3):
            world.join()
        for name in ("c0", "c2"):
            evil = world.clients[name]

            def packed(said: object, evil=evil, pack=evil.endpoint.pack) -> list:
                if not is_target(said, 1, 1) or evil.gone:
                    return pack(said)
                if change is None:
                    world.lose(evil)
                    return []
                return pack(change(said))

            evil.endpoint.pack = packed
        return world.run()

    world, without = both(filled), both(None)
    assert_finished(world)
    assert world.expelled.keys() == {"c0", "c2"}
    assert world.coordinator.weights_sha256() == without.coordinator.weights_sha256()


@pytest.mark.parametrize("preset", SENDING)
@pytest.mark.parametrize("value", [1e9, 9e11])
def test_what_the_default_guard_lets_through_cannot_destroy_the_state(preset: str, value: float) -> None:
    """Finite activations, a finite loss: but the step would leave weights that no honest client's batch survives."""
    world = attacked(
        make_config(preset, run__rounds=3), lambda said: replace(said, z=said.z.sign() * value, y=9 - said.y)
    )
    assert_finished(world)
    assert {client for client, _ in left_of(world)} <= {"c1"}
    for state in world.coordinator.weights().values():
        assert all(t.abs().max() < 1e7 for t in state.values() if t.is_floating_point())


# --- the state


@pytest.mark.parametrize("preset", ["sequential", "parallel", "splitfed_v1", "splitfed_v2", "locfedmix", "cse_fsl"])
@pytest.mark.parametrize("lr", [1e12, 1e30])
def test_a_learning_rate_that_destroys_the_state_blames_nobody(preset: str, lr: float) -> None:
    """Cohorts of one and of all: whoever comes next meets a head that is not finite on what it trained on either."""
    world = World(
        make_config(
            preset,
            server__optimizer=f'{{ kind = "sgd", lr = {lr} }}',
            run__rounds=3,
            client__wave="{ steps = 12 }",
            model__args="{ hidden = [16, 16, 16] }",
        )
    )
    for _ in range(3):
        world.join()
    with pytest.raises(Diverged, match="which makes the head's own state the cause, not a client"):
        world.run()
    assert left_of(world) == []
    assert world.expelled == {}


def test_a_state_that_never_trained_is_tried_on_zeros() -> None:
    world = World(config("parallel"))
    for _ in range(3):
        world.join()
    with torch.no_grad():
        for p in segment_of(world).module.parameters():
            p.fill_(torch.nan)
    with pytest.raises(Diverged, match="so it is on a batch of zeros"):
        world.run()


# --- merges


def test_a_merge_is_made_again_without_the_state_that_spoils_it() -> None:
    states = {c: {"w": torch.full((2,), value)} for c, value in enumerate((1.0, HUGE, 3.0))}
    record = Record(at=At(seed=0), samples=dict.fromkeys(states, 1), weights={"lower": states})
    merged, guilty = checked_merge(Average().after_round, record, {"lower": 1e18})
    assert merged["lower"]["w"].tolist() == [2.0, 2.0]
    assert guilty == {1: "weights of its lower: w would spoil what all go on with"}
    whole, nobody = checked_merge(Average().after_round, record, {})
    assert torch.isfinite(whole["lower"]["w"]).all()
    assert nobody == {}


def test_a_merge_that_nobody_can_save_fails() -> None:
    states = {c: {"w": torch.full((2,), torch.inf)} for c in range(2)}
    record = Record(at=At(seed=0), samples=dict.fromkeys(states, 1), weights={"lower": states})
    with pytest.raises(Diverged, match="weights of lower are not finite after round 1"):
        checked_merge(Average().after_round, record, {"lower": 1e18})


@pytest.mark.parametrize("preset", ["splitfed_v1", "locsplitfed"])
def test_a_spoilt_copy_of_the_head_is_left_out_of_the_average(preset: str) -> None:
    """It became what it is on the server, where no guard of what comes in could see it."""
    world = World(config(preset))
    for _ in range(3):
        world.join()
    while not any(isinstance(f, Trained) and f.step == 2 and f.client == "c1" for f in world.facts):
        world.run(until=1)
    with torch.no_grad():
        next(iter(world.coordinator.bank.get("head", 1).module.parameters())).fill_(torch.inf)
    world.run()
    assert_finished(world)
    ((client, reason),) = left_of(world)
    assert (client, "weights of its head" in reason) == ("c1", True)
    assert [f.clients for f in world.facts if isinstance(f, RoundEnded)] == [2, 2, 2]
    assert all(torch.isfinite(t).all() for t in segment_of(world).state().values())


def spoilt(victims: set[int], rounds: int) -> World:
    """A run whose clients keep heads of their own; after the first wave's last step some of these are not finite."""
    world = World(config("splitfed_v1", protocol__merge__parts='["lower"]', run__rounds=rounds))
    for _ in range(3):
        world.join()
    while victims - {fact.shard for fact in world.facts if isinstance(fact, Trained) and fact.step == 2}:
        world.run(until=1)
    for client in victims:
        with torch.no_grad():
            next(iter(world.coordinator.bank.get("head", client).module.parameters())).fill_(torch.inf)
    return world


@pytest.mark.parametrize("rounds", [1, 3])
def test_a_spoilt_copy_of_the_head_that_nobody_averages_is_not_kept(rounds: int) -> None:
    """It would be written, and never read again: neither by `serve` nor to resume."""
    world = spoilt({1}, rounds).run()
    assert_finished(world)
    ((client, reason),) = left_of(world)
    assert (client, "weights of its head: " in reason) == ("c1", True)
    assert [f.clients for f in world.facts if isinstance(f, RoundEnded)] == [2] * rounds
    assert sorted(world.coordinator.weights()) == ["head-0", "head-2", "lower"]
    again = Coordinator(world.config, world.coordinator.network)
    again.restore(world.coordinator.snapshot())
    assert again.weights().keys() == world.coordinator.weights().keys()


def test_heads_of_their_own_that_are_all_spoilt_end_the_run_and_blame_nobody() -> None:
    world = spoilt({0, 1, 2}, 1)
    with pytest.raises(Diverged, match=r"weights of its head: .* after round 1, wave 1: lower the learning rates"):
        world.run()
    assert left_of(world) == []


@pytest.mark.parametrize("preset", [name for name in PRESETS if PRESETS[name].protocol.merge.kind != "keep"])
def test_weights_of_3e38_are_refused_at_their_source(preset: str) -> None:
    """By the default guard: they are in no average, and no honest client meets them."""

    def explode(said: object) -> object:
        if not isinstance(said, Done) or not said.weights:
            return said
        return replace(
            said,
            weights={
                p: {n: torch.full_like(t, HUGE) if t.is_floating_point() else t for n, t in s.items()}
                for p, s in said.weights.items()
            },
        )

    world = World(make_config(preset, run__rounds=2))
    for _ in range(3):
        world.join()
    evil = world.clients["c1"]
    pack = evil.endpoint.pack
    evil.endpoint.pack = lambda said: pack(explode(said))
    with pytest.raises(WireError, match=r"weights of c1's \w+: \S+ hold 3e\+38, at most 1e\+18 is allowed"):
        world.run()
    evil.gone = True
    world.run()
    assert_finished(world)
    assert [client for client, _ in left_of(world)] == ["c1"]


@pytest.mark.parametrize("preset", SENDING)
def test_activations_of_3e38_are_refused_at_their_source(preset: str) -> None:
    world = World(make_config(preset))
    for _ in range(3):
        world.join()
    evil = world.clients["c1"]
    pack = evil.endpoint.pack
    evil.endpoint.pack = lambda said: pack(filled(said) if isinstance(said, Smashed) else said)
    with pytest.raises(WireError, match=r"activations of batch 0 hold 3e\+38, at most 1e\+12 is allowed"):
        world.run()
    evil.gone = True
    world.run()
    assert_finished(world)


def test_a_run_without_a_guard_evaluates_what_overflows() -> None:
    """An evaluation's loss that is not finite counts as 1e6, and ends nothing."""
    world = World(config("splitfed_v1"))
    for _ in range(3):
        world.join()
    evil = world.clients["c1"]
    pack = evil.endpoint.pack
    evil.endpoint.pack = lambda said: pack(filled(said) if isinstance(said, Smashed) and not said.train else said)
    world.run()
    assert_finished(world)
    found = [fact.loss for fact in world.facts if type(fact).__name__ == "Evaluated"]
    assert found
    assert all(0 <= loss <= 1e6 for loss in found)
    assert sum(isinstance(fact, RunEnded) for fact in world.facts) == 1


# --- over the network


def own_data(root: Path | None) -> Data:
    """A client whose folder is called evil has samples of 1e20."""
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(64, 1, 8, 8, generator=generator), torch.arange(64) % 10
    scale = 1e20 if root is not None and root.name == "evil" else 1.0
    return Data(train=(x * scale, y), test=(x[:10], y[:10]), classes=10)


def test_a_poisoner_is_told_and_the_others_finish_over_real_streams(tmp_path: Path) -> None:
    settings = {
        "data__name": '"test_poison:own_data"',
        "data__partition": '{ kind = "own" }',
        "model__input": "[1, 8, 8]",
        "model__classes": 10,
    }
    with serving(config("parallel", **settings)) as live:
        folders = [tmp_path / name for name in ("good", "evil", "fine")]
        clients = [ClientThread(live.address, name=f"c{n}", data=folder) for n, folder in enumerate(folders)]
        for client in clients:
            client.join(60)
        live.over.wait(20)
        assert [type(client.error) for client in clients] == [type(None), Refused, type(None)]
        assert clients[1].error.code == "protocol"
        assert "its batch 0 is to blame: the head's loss is" in clients[1].error.reason
        assert [client.bye.finished for client in clients if client.bye] == [True, True]
        assert live.sample("sl_rejected_total", reason="protocol") == 1
        assert [fact.client for fact in live.facts if isinstance(fact, ClientLeft)] == ["c1"]


def test_an_alignment_that_its_samples_make_impossible_blames_them() -> None:
    aux = Segment(torch.nn.Linear(4, 3), Sgd(lr=0.1))
    memory = AlignmentSamples(z=torch.ones(6, 4), y=torch.zeros(6, dtype=torch.int64), targets=torch.full((6, 4), HUGE))
    with pytest.raises(WireError, match="squared error inf before anything was learnt"):
        Alignment(epochs=2).run(aux, memory, (1, "align"))
