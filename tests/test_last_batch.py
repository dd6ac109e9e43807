"""A last batch of one sample, which not every network can train on: dealt, counted alike, and never met in the middle of a run."""

from __future__ import annotations

import os
import random
import sys
from dataclasses import replace

import drawn_runs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from world import World, make_config, run_world

from sl_client.data import Data
from sl_client.training.seat import take_seat
from sl_common.config.presets import PRESETS
from sl_common.config.run_config import RunConfig
from sl_common.dealing import Deal
from sl_common.errors import ConfigError, Unfit
from sl_common.messages.facts import ClientLeft, Trained, WaveBegun
from sl_common.messages.training import Ready, Welcome
from sl_common.network.network import Network
from sl_common.protocol.align import Alignment, AlignmentSamples
from sl_common.training.segment import Segment
from sl_common.training.singles import reason_against_one
from sl_server.core.claims import check_ready
from sl_server.core.preflight import preflight
from sl_server.preflight.check import inspect
from sl_server.simulation.simulation import Simulation
from sl_server.simulation.vectorized.simulation import Stacked

BN = {
    "model__name": '"cutlayer_nets:net"',
    "model__args": '{ kind = "flat" }',
    "model__cut": 1,
}  # BatchNorm in the head
LOW = BN | {"model__cut": 2}  # in the lower segment
DRAWS, SEED = int(os.environ.get("CUTLAYER_DRAWS", "48")), int(os.environ.get("CUTLAYER_SEED", "1"))
COUNTS = [9, 9]  # training samples of each client that brings its own


@pytest.fixture(autouse=True)
def _modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cutlayer_nets", drawn_runs)
    monkeypatch.setitem(sys.modules, "cutlayer_mine", sys.modules[__name__])


def images(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(count)), torch.arange(count) % 10


def own_data(_root: object) -> Data:
    """The next client's, who takes its place right after."""
    COUNTS.append(COUNTS.pop(0))
    return Data(train=images(COUNTS[-1]), test=images(20), classes=10)


def own(preset: str, counts: list[int], **more: object) -> RunConfig:
    COUNTS[:] = counts
    settings: dict[str, object] = {
        "run__rounds": 2,
        "run__clients": len(counts),
        "client__wave": "{ epochs = 1 }",
        "data__name": '"cutlayer_mine:own_data"',
        "data__partition": '{ kind = "own" }',
        "data__batch_size": 4,
        "model__input": "[1, 8, 8]",
        "model__classes": 10,
    }
    return make_config(preset, **(settings | BN | more))


def known(preset: str, **more: object) -> RunConfig:
    """Two clients of 144 and 143 samples; 143 = 2 · 71 + 1."""
    settings = {"run__rounds": 1, "run__clients": 10, "client__wave": "{ epochs = 1 }", "data__batch_size": 71}
    return make_config(preset, **(settings | BN | more))


def sizes_of(config: RunConfig) -> list[int]:
    return [fact.samples for fact in Simulation(config).facts() if isinstance(fact, Trained)]


@given(samples=st.integers(0, 60), size=st.integers(1, 9), last=st.sampled_from(["keep", "drop", "merge"]))
def test_a_deal_is_what_its_words_say(samples: int, size: int, last: str) -> None:
    deal = Deal(samples, size, last)
    parts = [range(samples)[deal.part(number)] for number in range(deal.batches)]
    assert [row for part in parts for row in part] == list(range(deal.used))
    assert all(len(part) == size for part in parts[:-1])
    assert deal.used == (samples - samples % size if last == "drop" else samples)
    assert (deal.largest, deal.smallest) == (max(map(len, parts), default=0), min(map(len, parts), default=0))
    assert deal.largest <= size + (last == "merge")
    if last == "merge" and samples > 1 < size:
        assert deal.smallest > 1


# --- what a run of a set that ships says before it begins


@pytest.mark.parametrize("more", [BN, LOW])
@pytest.mark.parametrize("preset", ["splitfed_v1", "splitfed_v2", "sequential", "fedavg", "cse_fsl"])
def test_it_is_refused_before_anybody_connects(preset: str, more: dict[str, object]) -> None:
    said = r"client 'c[0-9]' .*has 143 training samples.*data.batch_size = 71.*batch of one.*'drop'.*'merge'.*of 72"
    sends = (
        {"protocol__learner__partial": '"send"'} if preset == "cse_fsl" else {}
    )  # skipped, it would not reach the head
    config = known(preset, **more, **sends)
    for refused in (lambda: inspect(config), lambda: Simulation(config)):
        with pytest.raises(ConfigError, match=said):
            refused()


@pytest.mark.parametrize("last", ["drop", "merge"])
@pytest.mark.parametrize("preset", PRESETS)
def test_both_ways_out_work(preset: str, last: str) -> None:
    aux = {"protocol__learner__aux": '{ kind = "classifier" }'} if preset == "fsl_sage" else {}
    more = {"server__alignment": "{ epochs = 1 }"} | aux
    if preset == "sglr" and last == "merge":
        with pytest.raises(ConfigError, match=r"data.last_batch = 'merge'.*unequal = 'error'"):
            known(preset, data__last_batch=f'"{last}"', **more)
        more["protocol__head__scatter__unequal"] = '"mean"'
    config = known(preset, data__last_batch=f'"{last}"', **more)
    inspect(config)
    simulation = Simulation(config)
    sizes = [fact.samples for fact in simulation.facts() if isinstance(fact, Trained)]
    assert simulation.coordinator.ended.finished
    if preset == "parallel":
        assert sorted(set(sizes)) == ([71] if last == "drop" else [2, 71, 72])


def test_joined_batches_of_one_are_no_refusal() -> None:
    """143, 144, … samples: each has three batches, and the last ones of all together are more than one sample."""
    assert min(sizes_of(known("parallel"))) == 1


def test_an_evaluated_batch_of_one_is_fine_and_none_is_dealt() -> None:
    config = known("parallel", data__last_batch='"drop"', data__batch_size=34)  # 35 test samples for some
    seat = take_seat(Welcome(config=config.to_json(), client="c0", shard=0, shards=10), data=None, allowed=None)
    sizes = {tuple(len(batch.y) for batch in seat.data.evaluate(part, 10, 0)) for part in range(10)}
    assert sizes == {(33, 2), (34, 2)}


def test_a_stacked_simulation_merges_too() -> None:
    more = {"model__name": '"mlp"', "model__args": "{ hidden = [8] }", "data__last_batch": '"merge"'}
    config = known("parallel", **more)
    plain, stacked = Simulation(config), Stacked(config)
    sizes = [[f.samples for f in run.facts() if isinstance(f, Trained)] for run in (plain, stacked)]
    assert sizes[0] == sizes[1]
    assert 72 in sizes[0]


# --- data of a client's own


@pytest.mark.parametrize("more", [BN, LOW])
def test_at_ready_its_client_alone_is_refused(more: dict[str, object]) -> None:
    config = own("splitfed_v1", [9, 9], **more)
    with pytest.raises(Unfit, match=r"client 'c0' has 9 training samples.*data.batch_size = 4"):
        Simulation(config).run()


@pytest.mark.parametrize("preset", ["parallel", "locfedsl"])
def test_alone_in_the_head_it_is_refused_before_the_wave(preset: str) -> None:
    aux = {"protocol__learner__aux": '{ kind = "classifier" }'} if preset == "locfedsl" else {}
    world = run_world(own(preset, [9, 8], **aux))
    assert list(world.expelled) in ([], ["c0"], ["c1"])
    (left,) = [fact for fact in world.facts if isinstance(fact, ClientLeft)]
    assert "cannot take part: client" in left.reason
    assert "has 9 training samples" in left.reason
    assert not any(f.samples == 1 for f in world.facts if isinstance(f, Trained))
    assert run_world(own(preset, [9, 9], **aux)).coordinator.ended.finished


def test_who_is_left_alone_in_mid_run_ends_no_run() -> None:
    """The other client leaves with its last batch unsent; what remains of the cohort is one sample."""
    world = World(own("parallel", [9, 9]))
    for _ in range(2):
        world.join()
    world.leave_after["c1"] = 3  # ready and two batches
    world.run()
    reasons = [fact.reason for fact in world.facts if isinstance(fact, ClientLeft) and fact.client == "c0"]
    assert len(reasons) == 1
    assert reasons[0].startswith("cannot take part: client 'c0' has 9 training samples")
    assert world.coordinator.ended is None  # it waits for clients, as a run does that everybody left


class Tolerant(World):
    """A client that may not take part is sent away, as the engine does, and the others go on."""

    def _carry_up(self, client) -> None:
        try:
            super()._carry_up(client)
        except Unfit as error:
            assert client.session.client not in {m for f in self.facts if isinstance(f, WaveBegun) for m in f.clients}
            self.sessions.lose(client.session, str(error))
            client.gone = True


@pytest.mark.parametrize("draw", range(DRAWS))
@pytest.mark.filterwarnings("ignore")
def test_a_run_past_ready_never_ends_for_a_batch_of_one(draw: int) -> None:
    """Drawn counts of samples, batch sizes, networks with statistics of a batch, and clients that leave in the middle."""
    source = random.Random(SEED * 1_000_003 + draw)
    size = source.choice((3, 4, 5, 6))
    counts = [source.choice((size + 1, 2 * size + 1, source.randint(6, 13))) for _ in range(source.randint(1, 4))]
    preset = source.choice(["parallel"] * 6 + [name for name in PRESETS if name != "sglr"])
    kind, steps = source.choice(("flat", "unkept", "squeezed")), source.choice((None, None, 3))
    more = {
        "model__args": f'{{ kind = "{kind}" }}',
        "model__cut": source.choice((1, 2)),
        "data__batch_size": size,
        "data__last_batch": f'"{source.choice(("keep", "keep", "drop", "merge"))}"',
        "client__wave": f"{{ steps = {steps} }}" if steps else "{ epochs = 2 }",
        "run__clients": 1,
        "server__alignment": f"{{ epochs = 1, batch_size = {source.choice((1, 2, 3))} }}",
    }
    if preset in ("cse_fsl", "fsl_sage"):
        more |= {"protocol__learner__send_every": source.choice((1, 2)), "protocol__learner__partial": '"send"'}
    if preset in ("locfedsl", "locfedmix", "fsl_sage"):
        more["protocol__learner__aux"] = source.choice(
            ('{ kind = "classifier" }', '{ kind = "classifier", form = "head" }')
        )
    config = own(preset, counts, **more)
    try:
        preflight(config, Network.build(config))
    except ConfigError:
        return
    world = Tolerant(config, seed=draw)
    for _ in counts:
        world.join()
    if len(counts) > 1 and source.random() < 0.5:
        world.leave_after[f"c{source.randrange(len(counts))}"] = source.randint(2, 6)
    world.run()
    left = {fact.client: fact.reason for fact in world.facts if isinstance(fact, ClientLeft)}
    allowed = ("cannot take part: client", "client '", "the test took it away", "broke the protocol: client")
    assert all(reason.startswith(allowed) for reason in left.values()), left
    assert world.coordinator.ended is not None or len(left) == len(counts), left
    assert world.coordinator.ended is None or world.coordinator.ended.finished


def test_counts_of_a_ready_follow_the_deal() -> None:
    config = own("parallel", [9], data__last_batch='"merge"')
    check_ready(config, Ready(samples=9, batches=2))
    with pytest.raises(ConfigError.__mro__[1], match="joins the one before"):
        check_ready(config, Ready(samples=9, batches=3))
    assert Network.build(config).batch_size == 5


# --- the server's own batches


def test_an_alignment_has_no_batch_of_one() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    memory = AlignmentSamples(z=torch.randn(7, 3), y=torch.arange(7) % 2, targets=torch.zeros(7, 3))
    optimizer = Alignment().optimizer
    for size in (1, 2, 3, 6):
        before, after = Alignment(epochs=2, batch_size=size).run(Segment(module, optimizer), memory, (1,))
        assert 0 <= before < 10 > after >= 0


def test_an_alignment_that_takes_one_sample_is_as_it_was() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    aux = Segment(module, Alignment().optimizer)
    memory = AlignmentSamples(z=torch.randn(7, 3), y=torch.arange(7) % 2, targets=torch.zeros(7, 3))
    assert Alignment(batch_size=3)._least(aux, memory) == 1


def test_a_trial_changes_nothing() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    assert "more than 1 value" in reason_against_one(module, torch.zeros(3))
    assert reason_against_one(module, torch.zeros(3), train=False) is None
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert not module.training
    assert reason_against_one(drawn_runs.Squeezed(), torch.zeros(3)) == "what comes out of it then has shape (3,)"


def test_blame_can_be_laid_where_batches_are_of_one() -> None:
    """A head that overflows on a cohort is asked about each client's batch alone, be it of one sample."""
    from sl_common.protocol import At
    from sl_server.core.blame import Blame
    from sl_server.core.coordinator import Coordinator

    config = own("parallel", [9, 9])
    coordinator = Coordinator(config, Network.build(config))
    blame = Blame(config.protocol.head, coordinator.bank, coordinator.network)
    fine = blame._zeros(0)
    fine = replace(fine, batch=replace(fine.batch, z=fine.batch.z[:1], y=fine.batch.y[:1]))
    bad = replace(fine, client=1, batch=replace(fine.batch, z=fine.batch.z + torch.nan))
    assert blame.guilty([fine, bad], At(seed=0), ConfigError("overflow")) == [1]
