"""Estimated cut gradients and their alignment, by the invariants of the spec (fsl_sage.md g) and against plain loops."""

from __future__ import annotations

import copy
import math
import threading
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from live import ClientThread, serving
from pydantic import ValidationError
from test_equivalence import assert_same_bits, batches, dumb_average, halves, loaders, lower_of, run, whole_model
from torch import Tensor, nn
from world import World, make_config, run_world

from sl_common.config.presets import PRESETS
from sl_common.config.run_config import RunConfig
from sl_common.config.server_section import Budget
from sl_common.errors import ConfigError, Diverged, WireError
from sl_common.messages.facts import AuxAligned, RoundEnded, Trained
from sl_common.messages.training import Aligned, Begin, Directive, Done, Gradient, Newest, Smashed
from sl_common.models.auxiliary import Classifier
from sl_common.network.network import Network
from sl_common.protocol import Always, At, AwaitAligned, Draws, LocalLoss, Protocol
from sl_common.protocol.align import Alignment, AlignmentSamples, squared_error
from sl_common.training.bank import Bank
from sl_common.training.optim import Adam, Sgd
from sl_common.training.segment import Segment
from sl_common.wire import eventlog
from sl_server.core.coordinator import Coordinator
from sl_server.core.recordings import Recordings
from sl_server.simulation.replay import replay_events
from sl_server.simulation.simulation import Simulation
from sl_server.telemetry.ledger import Ledger


def sage(**more: object) -> RunConfig:
    """Every second batch is sent, networks are aligned every second round."""
    settings = {
        "protocol__gate__record": 48,
        "protocol__gate__align_every": 2,
        "protocol__learner__send_every": 2,
        "server__alignment": "{ epochs = 3, batch_size = 20 }",
        "client__wave": "{ steps = 5 }",
        "run__rounds": 3,
    }
    return make_config("fsl_sage", **(settings | more))


def segment(module: nn.Module, optimizer: Any = None) -> Segment:
    return Segment(copy.deepcopy(module), optimizer or Sgd(lr=0.01))


def head_of(seed: int = 0, batch_norm: bool = False) -> nn.Module:
    torch.manual_seed(seed)
    norm = [nn.BatchNorm1d(12)] if batch_norm else []
    return nn.Sequential(nn.Linear(6, 12), *norm, nn.Tanh(), nn.Linear(12, 10))


def samples(count: int = 30, seed: int = 1) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, 6, generator=draw), torch.randint(10, (count,), generator=draw)


def by_hand(head: nn.Module, z: Tensor, y: Tensor) -> Tensor:
    """Each sample's own cut gradient, one sample at a time."""
    found = []
    for one, label in zip(z, y, strict=True):
        own = one.clone().requires_grad_()
        F.cross_entropy(head(own[None]), label[None]).backward()
        found.append(own.grad)
    return torch.stack(found)


def memory_of(head: nn.Module, count: int = 30) -> AlignmentSamples:
    z, y = samples(count)
    return AlignmentSamples(z=z, y=y, targets=by_hand(head, z, y))


def aux_of(simulation: Simulation, client: int) -> dict[str, Tensor]:
    return simulation.seats[client].bank.get("aux").state()


# --- fsl_sage.md g


def test_an_auxiliary_that_is_the_head_has_nothing_to_learn() -> None:
    """g1."""
    head = head_of()
    z, y = samples()
    aux = segment(head)
    torch.testing.assert_close(Alignment().refresh(segment(head), z, y, ()), by_hand(head, z, y))
    memory = AlignmentSamples(z=z, y=y, targets=Alignment().refresh(segment(head), z, y, ()))
    assert squared_error(aux, memory, ()).item() < 1e-12
    assert Alignment(epochs=5, optimizer=Sgd(lr=0.1)).run(aux, memory, (0,)) == pytest.approx((0, 0), abs=1e-12)
    for name, tensor in aux.state().items():
        torch.testing.assert_close(tensor, head.state_dict()[name], rtol=0, atol=1e-6)


def drive(learner: LocalLoss, lower: Segment, aux: Segment, batch_list: list) -> list:
    """A wave of a learner; what it said."""
    bank = Bank({"lower": lambda: lower, "aux": lambda: aux})
    exchange = learner.train(bank, batch_list, Directive(), Draws(seed=0, round=0, shard=0))
    said: list = []
    answer: object = None
    while True:
        try:
            said.append(exchange.send(answer))
        except StopIteration:
            return said
        answer = None
        if isinstance(said[-1], AwaitAligned):
            answer = Aligned(round=0, wave=0, weights={"aux": aux.state()}, before=0.0, after=0.0)


def test_with_the_heads_own_weights_a_step_is_that_of_splitfed() -> None:
    """g2: q = 1, a head that does not move."""
    config = sage()
    lower, head = halves(whole_model(config), 1)
    dealt = batches(config, loaders(config)[0], 0)
    own = segment(lower, Sgd(lr=0.05, momentum=0.9))
    drive(LocalLoss(train_aux=False), own, segment(head), dealt)
    plain = copy.deepcopy(lower)
    step = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9)
    for batch in dealt:
        step.zero_grad()
        F.cross_entropy(head(plain(batch.x)), batch.y).backward()
        step.step()
    assert_same_bits(own.state(), plain.state_dict())


def test_a_network_that_says_nothing_leaves_the_client_as_it_is() -> None:
    """g3: constant logits, no weight decay."""
    config = sage()
    lower, head = halves(whole_model(config), 1)
    silent = copy.deepcopy(head)
    for p in silent.parameters():
        p.data.zero_()
    own = segment(lower, Sgd(lr=0.5))
    drive(LocalLoss(train_aux=False), own, segment(silent), batches(config, loaders(config)[0], 0))
    assert_same_bits(own.state(), lower.state_dict())


def test_the_clients_networks_change_in_rounds_of_alignment_alone() -> None:
    """g4, g6: bit for bit; lowers are equal after each round."""
    simulation = Simulation(sage(run__rounds=5))
    rounds = (fact for fact in simulation.facts() if isinstance(fact, RoundEnded))
    seen = [[aux_of(simulation, client) for client in range(3)] for _ in rounds]
    changed = [
        [any(not torch.equal(now[k], then[k]) for k in now) for now, then in zip(seen[r], seen[r - 1], strict=True)]
        for r in range(1, 5)
    ]
    assert changed == [[False] * 3, [True] * 3, [False] * 3, [True] * 3]
    assert any(not torch.equal(seen[0][0][k], seen[0][1][k]) for k in seen[0][0]), "each client has its own"
    for client in (1, 2):
        assert_same_bits(lower_of(simulation, 0), lower_of(simulation, client))
    for client in range(3):
        assert_same_bits(aux_of(simulation, client), simulation.coordinator.bank.get("aux", client).state())


@pytest.mark.parametrize("send_every", [1, 2, 3, 5, 7])
def test_the_head_steps_once_for_every_upload(send_every: int) -> None:
    """g5, f7: Σ ceil(Kᵢ/q); the count begins anew with each round."""
    facts = Simulation(sage(protocol__learner__send_every=send_every, run__rounds=2)).run()
    assert sum(isinstance(f, Trained) for f in facts) == 2 * 3 * math.ceil(5 / send_every)


def test_no_cut_gradient_comes_down() -> None:
    """g7; targets may be stored nevertheless."""
    for targets in ("refreshed", "stored"):
        ledger = Ledger()
        config = sage(server__alignment__targets=f'"{targets}"')
        Simulation(config, count=ledger.count).run()
        assert ledger.payload["down", "gradient"] == 0
        assert ledger.payload["up", "smashed"] > 0


@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_small_step_does_not_raise_the_error(batch_norm: bool) -> None:
    """g8."""
    memory = memory_of(head_of(0))
    aux = segment(head_of(5, batch_norm), Sgd(lr=1e-3))
    before, after = Alignment(epochs=20, batch_size=30, optimizer=Sgd(lr=1e-3)).run(aux, memory, (0,))
    assert after < before
    assert squared_error(aux, memory, ()).item() / 30 <= before


def test_bytes_are_the_papers() -> None:
    """g9: m = 10, CIFAR-10 iid, ResNet-18: 5,000 samples a client in batches of 256, one of five of them sent."""
    sets = ["model.name=resnet18", "model.cut=layer2_1", "data.name=cifar10", "data.batch_size=256"]
    config = RunConfig.from_toml('[protocol]\npreset = "fsl_sage"', sets)
    network = Network.build(config)
    steps = config.client.wave.batches(math.ceil(5000 / 256))
    sent = list(config.protocol.learner.sent(steps))
    assert sent == [0, 5, 10, 15]
    smashed = 10 * len(sent) * network.smashed_nbytes
    size = {part: Segment(network.part(part), Adam()).nbytes for part in ("lower", "aux", "head")}
    assert (smashed, 10 * 2 * size["lower"], 10 * size["aux"]) == (83_886_080, 54_800_960, 84_194_080)
    assert smashed + 10 * 2 * size["lower"] == 138_687_040
    assert smashed + 10 * 2 * (size["lower"] + size["aux"]) == 307_075_200, "CSE-FSL"
    assert 2 * 10 * 5000 * network.smashed_nbytes // 256 + 10 * 2 * size["lower"] == 874_000_960, "SplitFed"
    assert 10 * 2 * (size["lower"] + size["head"]) == 895_302_560, "FedAvg"


def test_a_linear_networks_estimate_has_a_closed_form() -> None:
    """g10: ĝ = Wᵀ(softmax(Wz) − e_y)/B."""
    z, y = samples(8)
    z.requires_grad_()
    aux = segment(nn.Linear(6, 10, bias=False))
    weight = aux.module.weight.detach()
    found = aux.gradient(F.cross_entropy(aux.forward(z), y), z)
    wanted = (torch.softmax(z.detach() @ weight.T, dim=1) - F.one_hot(y, 10)) @ weight / 8
    torch.testing.assert_close(found, wanted)


def test_the_scalar_vector_of_double_backprop() -> None:
    """g11: logit θz, loss ½(θz − y)²; z = 1, y = 0, w = 2, θ = 1: G = 4, ĝ = 1, error 9, d(error)/dθ = −12."""
    z = torch.tensor([[1.0]], requires_grad=True)
    server, aux = (segment(nn.Linear(1, 1, bias=False)) for _ in range(2))
    server.module.weight.data.fill_(2.0)
    aux.module.weight.data.fill_(1.0)
    target = server.gradient(0.5 * server.forward(z).square().sum(), z)
    estimate = aux.gradient(0.5 * aux.forward(z).square().sum(), z, differentiable=True)
    error = (estimate - target).square().sum()
    aux.backward(error)
    assert [t.item() for t in (target, estimate, error, aux.module.weight.grad)] == [4.0, 1.0, 9.0, -12.0]


@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_gradient_of_the_error_is_that_of_finite_differences(batch_norm: bool) -> None:
    """g12: a two-layer tanh network in double precision."""
    head = head_of(0).double()
    z, y = samples(7)
    memory = AlignmentSamples(z=z.double(), y=y, targets=by_hand(head, z.double(), y))
    aux = segment(head_of(3, batch_norm).double())
    aux.backward(squared_error(aux, memory, ()))
    for p in aux.module.parameters():
        for place in range(0, p.numel(), 5):
            found = []
            for shift in (1e-5, -1e-5):
                moved = copy.deepcopy(aux)
                flat = dict(moved.module.named_parameters())[name_of(aux.module, p)].data.view(-1)
                flat[place] += shift
                found.append(squared_error(moved, memory, ()).item())
            wanted = (found[0] - found[1]) / 2e-5
            assert p.grad.view(-1)[place].item() == pytest.approx(wanted, rel=1e-4, abs=1e-7)


def name_of(module: nn.Module, parameter: nn.Parameter) -> str:
    return next(name for name, p in module.named_parameters() if p is parameter)


# --- a plain loop does the same


@pytest.mark.parametrize("targets", ["refreshed", "stored"])
def test_a_whole_run_is_a_plain_loop(targets: str) -> None:
    """Uploads at n ≡ 0 mod q, client after client; alignment after a round's first; estimates of a batch's mean loss; averages."""
    config = sage(
        server__alignment=f'{{ epochs = 2, batch_size = 48, targets = "{targets}", optimizer = {{ kind = "sgd", lr = 0.05 }} }}'
    )
    simulation = run(config)
    lower, head = halves(whole_model(config), 1)
    first_aux = Network.build(config).aux
    lowers, auxes = ([copy.deepcopy(m) for _ in range(3)] for m in (lower, first_aux))
    steps = [torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9) for m in lowers]
    aux_steps = [torch.optim.SGD(m.parameters(), lr=0.05) for m in auxes]
    head_step = torch.optim.SGD(head.parameters(), lr=0.05, momentum=0.9)
    kept: list[list[tuple[Tensor, Tensor, Tensor]]] = [[], [], []]

    def learn(client: int, z: Tensor, y: Tensor) -> None:
        stored = by_hand(head, z, y)
        head_step.zero_grad()
        F.cross_entropy(head(z), y).backward()
        head_step.step()
        kept[client] = [*kept[client], *zip(z, y, stored, strict=True)][-48:]

    def align(client: int) -> None:
        z, y, stored = (torch.stack(list(column)) for column in zip(*kept[client], strict=True))
        goals = by_hand(head, z, y) if targets == "refreshed" else stored
        for _ in range(2):
            own = z.clone().requires_grad_()
            loss = F.cross_entropy(auxes[client](own), y, reduction="sum")
            (estimate,) = torch.autograd.grad(loss, own, create_graph=True)
            aux_steps[client].zero_grad()
            (estimate - goals).square().sum().backward()
            aux_steps[client].step()

    for round in range(3):
        dealt = [batches(config, loader, round) for loader in loaders(config)]
        uploads: list[tuple[int, Tensor, Tensor]] = []
        for number in range(5):
            for client in range(3):
                batch = dealt[client][number]
                z = lowers[client](batch.x)
                if number == 0:
                    learn(client, z.detach(), batch.y)
                    if round % 2 == 0:
                        align(client)
                elif number % 2 == 0:
                    uploads.append((client, z.detach(), batch.y))
                steps[client].zero_grad()
                F.cross_entropy(auxes[client](z), batch.y).backward()
                steps[client].step()
        for upload in uploads:
            learn(*upload)
        mean = dumb_average([m.state_dict() for m in lowers], [loader.samples for loader in loaders(config)])
        for m in lowers:
            m.load_state_dict(mean)
    near = {"rtol": 2e-4, "atol": 2e-6}
    for name, tensor in head.state_dict().items():
        torch.testing.assert_close(simulation.coordinator.bank.get("head").state()[name], tensor, **near)
    for client in range(3):
        for name, tensor in lowers[client].state_dict().items():
            torch.testing.assert_close(lower_of(simulation, client)[name], tensor, **near)
        for name, tensor in auxes[client].state_dict().items():
            torch.testing.assert_close(aux_of(simulation, client)[name], tensor, **near)


def test_the_optimiser_goes_on_where_it_was() -> None:
    """f10: Adam's moments persist across alignments."""
    memory = memory_of(head_of(0))
    twice, anew = segment(head_of(5), Adam(lr=1e-2)), segment(head_of(5), Adam(lr=1e-2))
    how = Alignment(epochs=3, batch_size=30)
    for _ in range(2):
        how.run(twice, memory, (0,))
        how.run(anew, memory, (0,))
        anew = segment(anew.module, Adam(lr=1e-2))
    once = segment(head_of(5), Adam(lr=1e-2))
    Alignment(epochs=6, batch_size=30).run(once, memory, (0,))
    for name, tensor in once.state().items():
        torch.testing.assert_close(twice.state()[name], tensor, rtol=1e-4, atol=1e-6)
        assert not torch.allclose(anew.state()[name], tensor, rtol=1e-4, atol=1e-6)


def test_buffers_stay_as_they_are() -> None:
    """f3: alignment and estimates use batch statistics; a refresh touches the head's only where that is asked for."""
    head = segment(head_of(0, batch_norm=True))
    aux = segment(head_of(5, batch_norm=True))
    z, y = samples()
    before = [{k: t.clone() for k, t in s.module.named_buffers()} for s in (head, aux)]
    targets = Alignment().refresh(head, z, y, ())
    Alignment(epochs=2).run(aux, AlignmentSamples(z=z, y=y, targets=targets), (0,))
    for segment_, own in zip((head, aux), before, strict=True):
        assert_same_bits(dict(segment_.module.named_buffers()), own)
    Alignment(head_buffers="updated").refresh(head, z, y, ())
    assert not torch.equal(head.module[1].running_mean, before[0]["1.running_mean"])


def test_a_clients_own_network_keeps_its_buffers_too() -> None:
    config = sage(model__args="{ hidden = [16, 12], batch_norm = true }")
    simulation = run(config)
    for client in range(3):
        own = {k: t for k, t in aux_of(simulation, client).items() if "running" in k or "num_batches" in k}
        assert own
        assert_same_bits(own, {k: t for k, t in Network.build(config).aux.state_dict().items() if k in own})


# --- what is stored


def recorded(**options: Any) -> Recordings:
    recordings = Recordings(make_config("parallel").codec, Budget(), **options)
    for number in range(6):
        value = float(number)
        batch = Smashed(step=number, z=torch.full((4, 2), value), y=torch.full((4,), number))
        recordings.keep(0, batch, Newest(samples=10), torch.full((4, 2), -value))
    return recordings


def test_the_newest_samples_are_counted_one_by_one() -> None:
    z, y, targets = recorded().newest(0, 10)
    assert y.tolist() == [3, 3, 4, 4, 4, 4, 5, 5, 5, 5]
    assert z[:, 0].tolist() == [-t for t in targets[:, 1].tolist()] == [float(n) for n in y.tolist()]


def test_what_is_stored_may_lie_on_disk() -> None:
    moved = []

    def spill(data: memoryview) -> memoryview:
        moved.append(len(data))
        return memoryview(bytearray(data))

    recordings = Recordings(make_config("parallel").codec, Budget(memory_mb=0, disk_mb=1), spill)
    batch = Smashed(step=0, z=torch.ones(4, 2), y=torch.zeros(4, dtype=torch.int64))
    recordings.keep(0, batch, Newest(samples=10), torch.full((4, 2), 3.0))
    assert moved == [32, 32]
    assert recordings.newest(0, 9)[2].tolist() == [[3.0, 3.0]] * 4
    recordings.forget(0)
    assert recordings.spilled_bytes == 0


def test_nothing_to_align_with_is_told() -> None:
    with pytest.raises(ValueError, match="nothing is recorded of client 7"):
        recorded().newest(7, 3)
    empty = AlignmentSamples(z=torch.zeros(0, 6), y=torch.zeros(0, dtype=torch.int64), targets=torch.zeros(0, 6))
    with pytest.raises(ValueError, match="empty memory"):
        Alignment().run(segment(head_of()), empty, ())


def test_an_alignment_that_diverges_ends_the_run_with_the_key_to_turn() -> None:
    config = sage(server__alignment='{ epochs = 50, optimizer = { kind = "sgd", lr = 1e30 } }')
    with pytest.raises(Diverged, match=r"server.alignment.optimizer.lr"):
        Simulation(config).run()
    with serving(config) as live:
        clients = [ClientThread(live.address) for _ in range(3)]
        for client in clients:
            client.join(60)
        live.over.wait(20)
    assert "server.alignment.optimizer.lr" in live.engine.failure
    assert all("server.alignment.optimizer.lr" in client.bye.reason for client in clients)


# --- who waits for whom


def test_nobody_waits_for_anothers_alignment() -> None:
    """Within its window a client finishes its wave though another's alignment never ends."""
    config = sage(client__window=9, client__wave="{ steps = 12 }", run__rounds=1, eval__every=0)
    world = World(config)
    world.stuck = {"c0"}
    for _ in range(3):
        world.join()
    world.run()
    assert {job.client for job in world.jobs} == {"c0"}
    assert [c.session.client for c in world.clients.values() if isinstance(c.flow._op, AwaitAligned)] == ["c0"]
    assert sum(client.said for name, client in world.clients.items() if name != "c0") == 2 * (1 + 6 + 1)
    world.stuck = set()
    world.run()
    assert world.coordinator.ended.finished


def test_a_client_that_leaves_takes_its_alignment_with_it() -> None:
    world = World(sage())
    world.stuck = {"c1"}
    for _ in range(3):
        world.join()
    world.run()
    (job,) = world.jobs
    world.lose(world.clients["c1"])
    before = len(world.said)
    world.sessions.aligned("c1", job.run())  # too late
    assert len(world.said) == before
    world.jobs.clear()
    world.run()
    assert world.coordinator.ended.finished
    assert {f.round for f in world.facts if isinstance(f, RoundEnded)} == {0, 1, 2}


def test_a_new_life_begins_with_an_alignment() -> None:
    """Its network is the first one again, whatever the former life's had become and whichever round it is."""
    world = World(sage(run__rounds=4))
    world.stuck = {"c2"}
    for _ in range(3):
        world.join()
    world.run()
    stale = world.jobs.pop()
    world.lose(world.clients["c2"])
    world.stuck = set()
    world.join("c2")
    world.sessions.aligned("c2", stale.run())
    world.run()
    assert world.coordinator.ended.finished
    begins = [m for name, m in world.said if name == "c2" and isinstance(m, Begin) and not m.evaluate]
    assert [(m.round, m.directive.align) for m in begins] == [(0, True), (1, True), (2, True), (3, False)]
    assert [m.round for name, m in world.said if name == "c2" and isinstance(m, Aligned)] == [1, 2]
    own = world.clients["c2"].seat.bank.get("aux").state()
    assert_same_bits(own, world.coordinator.bank.get("aux", 2).state())


@pytest.mark.parametrize("seed", range(4))
def test_alignments_end_at_any_time(seed: int) -> None:
    """The same weights, and those of the simulator; streams are cut meanwhile."""
    world = run_world(sage(), seed, cut_every=7)
    assert world.cuts > 3
    assert world.coordinator.weights_sha256() == run(sage()).coordinator.weights_sha256()


def test_the_event_log_holds_alignments() -> None:
    """Replayed without doing them again: the same messages, the same weights, the same networks of the clients."""
    world = run_world(sage())
    data = b"".join(eventlog.dump(*entry) for entry in world.events)
    events = list(eventlog.load_events(data))
    assert [(e.round, e.before, e.after) for _, e in events if isinstance(e, Aligned)] == [
        (e.round, e.before, e.after) for _, e in world.events if isinstance(e, Aligned)
    ]
    replayed = Coordinator(world.config, Network.build(world.config))
    said = replay_events(replayed, events)
    assert [(name, type(m)) for name, m in said] == [(name, type(m)) for name, m in world.said]
    assert replayed.weights_sha256() == world.coordinator.weights_sha256()
    for client in range(3):
        assert_same_bits(replayed.bank.get("aux", client).state(), world.coordinator.bank.get("aux", client).state())


def test_a_real_server_aligns_beside_its_training_and_says_how_long_it_took() -> None:
    config = sage()
    with serving(config) as live:
        clients = [ClientThread(live.address) for _ in range(3)]
        for client in clients:
            client.join(60)
        live.over.wait(20)
    assert [client.error for client in clients] == [None] * 3
    told = [f for f in live.facts if isinstance(f, AuxAligned)]
    assert sorted((f.client, f.round, f.samples) for f in told) == sorted(
        (f"c{c}", r, 32 if r == 0 else 48) for c in range(3) for r in (0, 2)
    )
    assert all(f.took_s > 0 and f.after < f.before for f in told)
    assert live.sample("sl_alignment_seconds_count") == 6
    assert live.coordinator.weights_sha256() == run(config).coordinator.weights_sha256()


def test_weights_that_nobody_awaits_are_an_error() -> None:
    world = World(sage())
    client = world.join()
    world.run()
    with pytest.raises(WireError, match="did not await"):
        client.flow.deliver(Aligned(round=0, wave=0, weights={"aux": {}}, before=0.0, after=0.0))


def test_done_before_the_alignment_is_an_error() -> None:
    world = World(sage(run__clients=1))
    world.stuck = {"c0"}
    world.join()
    world.run()
    digests = dict.fromkeys(("lower", "aux"), b"\x00" * 32)
    done = Done(round=0, wave=0, steps=5, samples=160, digests=digests, weights={})
    with pytest.raises(WireError, match="before the auxiliary network was aligned"):
        world.coordinator.handle("c0", done)


# --- options


def test_aligned_once_means_in_the_first_round() -> None:
    """f9: l = ∞."""
    config = sage(run__rounds=4)
    gate = config.protocol.gate.model_copy(update={"align_every": None})
    config = config.model_copy(update={"protocol": config.protocol.model_copy(update={"gate": gate})})
    facts = Simulation(config).run()
    assert [f.round for f in facts if isinstance(f, AuxAligned)] == [0, 0, 0]


def test_a_warm_start_is_a_round_of_cse_fsl() -> None:
    """f6: clients train their networks themselves, and all go on from the mean; then alignment begins."""
    more = {"protocol__merge__parts": '["lower", "aux"]', "eval__every": 0}
    warm = Simulation(sage(protocol__gate__warm_start=1, **more, run__rounds=1))
    warm.run()
    plain = Simulation(
        make_config(
            "cse_fsl",
            client__wave="{ steps = 5 }",
            run__rounds=1,
            protocol__learner__send_every=2,
            protocol__learner__upload='"first"',
            protocol__learner__aux='{ form = "head", blocks = 2 }',
            eval__every=0,
        )
    )
    plain.run()
    assert_same_bits(aux_of(warm, 1), aux_of(plain, 1))
    assert_same_bits(lower_of(warm, 1), lower_of(plain, 1))
    longer = Simulation(sage(protocol__gate__warm_start=1, **more, run__rounds=4))
    facts = longer.run()
    assert sorted({f.round for f in facts if isinstance(f, AuxAligned)}) == [1, 3]
    sent = Ledger()
    Simulation(sage(protocol__gate__warm_start=1, **more, run__rounds=4), count=sent.count).run()
    lower, aux = (sum(t.nbytes for t in of(longer, 0).values()) for of in (lower_of, aux_of))
    assert sent.payload["up", "weights"] == 3 * (4 * lower + aux)


@pytest.mark.parametrize(
    "form", ['{ kind = "classifier", form = "linear" }', '{ form = "head", blocks = 1 }', "{ blocks = 9 }"]
)
def test_any_size_of_network_can_be_aligned(form: str) -> None:
    config = sage(
        model__name='"cnn"',
        model__args="{ channels = [4, 8], hidden = 16 }",
        protocol__learner__aux=form,
        run__rounds=1,
    )
    told = [f for f in Simulation(config).facts() if isinstance(f, AuxAligned)]
    assert len(told) == 3
    assert all(f.after < f.before for f in told)


def test_the_preset_has_the_papers_values() -> None:
    protocol = PRESETS["fsl_sage"].protocol
    assert protocol.gate == Always(record=1000, align_every=10)
    assert (protocol.learner.send_every, protocol.learner.upload) == (5, "first")
    assert Alignment() == Alignment(epochs=100, batch_size=1000, optimizer=Adam(lr=1e-3))
    directives = [protocol.gate.decide([0.0] * r, At(seed=0, round=r)) for r in range(21)]
    assert [r for r, d in enumerate(directives) if d.align] == [0, 10, 20]
    assert {d.record for d in directives} == {Newest(samples=1000)}


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: Always(record=0), "record"),
        (lambda: Always(align_every=0), "align_every"),
        (lambda: Always(warm_start=-1), "warm_start"),
        (lambda: Alignment(epochs=0), "epochs"),
        (lambda: Alignment(batch_size=0), "batch_size"),
        (lambda: Classifier(form="head", blocks=0), "blocks"),
        (lambda: Protocol(gate=Always(align_every=3)), "train_aux = false"),
        (lambda: Protocol(learner=LocalLoss(train_aux=False)), "needs gate.record"),
        (lambda: sage(protocol__learner__aux='{ kind = "decoder" }'), "a decoder estimates no gradient"),
        (lambda: sage(protocol__gate__warm_start=1), "needs merge.parts"),
        (lambda: sage(protocol__learner__send_every=0), "send_every"),
        (lambda: make_config("fsl_sage", protocol__gate='{ kind = "periodic" }'), "needs gate.record"),
        (lambda: sage(client__window=0), "window"),
    ],
)
def test_bad_values_are_told(build: Any, text: str) -> None:
    with pytest.raises((ValidationError, ConfigError), match=text):
        build()


def test_a_reply_carries_no_gradient_that_was_not_asked_for() -> None:
    world = run_world(sage(server__alignment__targets='"stored"'))
    replies = [m for _, m in world.said if isinstance(m, Gradient)]
    assert replies
    assert all(m.dz is None for m in replies)


def test_threads_that_draw_do_not_disturb_each_other() -> None:
    """Dropout in the head and in the networks under alignment: torch has one generator for all threads."""
    lock = threading.Lock()
    aux, head = (Segment(nn.Dropout(0.5), Adam(), alone=lock) for _ in range(2))
    ones = torch.ones(200_000)
    wanted = [aux.forward(ones, (n,)) for n in range(40)]
    beside = threading.Thread(target=lambda: [head.forward(ones, (n, "other")) for n in range(40)])
    beside.start()
    found = [aux.forward(ones, (n,)) for n in range(40)]
    beside.join()
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
