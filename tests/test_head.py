"""The server's step against plain PyTorch that was written without looking at it."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from drawn import LAW, bytes_of, content, normal
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from sl_common.errors import Diverged
from sl_common.messages.training import Gradient, Smashed
from sl_common.protocol import Arrived, At, Head
from sl_common.protocol.head import _times
from sl_common.training.bank import Bank
from sl_common.training.optim import Adam, Optimizer, Sgd
from sl_common.training.segment import Segment

AT = At(seed=1, round=2, rounds=5, step=3)
SIZES = [5, 2, 7, 3]
SAMPLES = [40, 1000, 7, 333]
SGD = Sgd(lr=0.1, momentum=0.9)
CUT, CLASSES = 6, 4


def make_net(kind: str) -> nn.Sequential:
    extra = {"plain": [], "batch_norm": [nn.BatchNorm1d(8)], "dropout": [nn.Dropout(0.5)]}[kind]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(CUT, 8), *extra, nn.ReLU(), nn.Linear(8, CLASSES))


def make_bank(net: nn.Module, optimizer: Optimizer = SGD, per_client: frozenset[str] = frozenset()) -> Bank:
    return Bank({"head": lambda: Segment(copy.deepcopy(net), optimizer)}, per_client)


def arrived(client: int, *, train: bool = True, needs_grad: bool = True, step: int = 0) -> Arrived:
    generator = torch.Generator().manual_seed(10 * step + client)
    z = torch.randn(SIZES[client], CUT, generator=generator)
    y = torch.randint(0, CLASSES, (SIZES[client],), generator=generator)
    batch = Smashed(step=step, z=z, y=y, train=train, needs_grad=needs_grad)
    return Arrived(client=client, batch=batch, samples=SAMPLES[client])


def cohort_of(count: int, **options: int) -> list[Arrived]:
    return [arrived(client, **options) for client in range(count)]


def snapshot(segment: Segment) -> dict[str, bytes]:
    """Weights, buffers and all that the optimiser remembers."""
    segment.run_deferred_step()
    kept = {name: bytes_of(tensor) for name, tensor in segment.module.state_dict().items()}
    for number, slots in segment.optimizer.state_dict()["state"].items():
        kept |= {f"{number}/{slot}": bytes_of(torch.as_tensor(value)) for slot, value in slots.items()}
    return kept


# --- the twin


@dataclass
class Twin:
    """One network, one optimiser, a cohort's batches as a list of (z, y)."""

    net: nn.Module
    optimizer: torch.optim.Optimizer

    def step(self, cohort: list[Arrived], weights: list[float] | None) -> tuple[list[float], list[Tensor]]:
        """(loss of each, gradient of the cohort's loss by each z). `weights`: how much each client counts; None: its size."""
        self.net.train()
        self.optimizer.zero_grad()
        z = torch.cat([a.batch.z for a in cohort]).requires_grad_()
        y = torch.cat([a.batch.y for a in cohort])
        logits = self.net(z)
        ends = list(itertools.accumulate(len(a.batch.y) for a in cohort))
        spans = list(zip([0, *ends], ends, strict=False))
        if weights is None:
            loss = F.cross_entropy(logits, y)
        else:
            each = F.cross_entropy(logits, y, reduction="none")
            loss = sum(w / sum(weights) * each[a:b].sum() / (b - a) for w, (a, b) in zip(weights, spans, strict=True))
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            own = [F.cross_entropy(logits[a:b], y[a:b]).item() for a, b in spans]
        return own, [z.grad[a:b] for a, b in spans]


def settled(bank: Bank, client: int | None = None) -> Segment:
    """The head after the step that a reply does not wait for."""
    bank.run_deferred_step()
    return bank.get("head", client)


def twin_of(bank: Bank, client: int | None = None) -> Twin:
    net = copy.deepcopy(bank.get("head", client).module)
    return Twin(net, torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9))


def own_mean_gradients(net: nn.Module, cohort: list[Arrived]) -> list[Tensor]:
    """d(mean loss over a client's own batch)/dz, each batch alone through the network."""
    net = copy.deepcopy(net).train()
    zs = [a.batch.z.clone().requires_grad_() for a in cohort]
    for z, a in zip(zs, cohort, strict=True):
        F.cross_entropy(net(z), a.batch.y).backward()
    return [z.grad for z in zs]


# --- the step


@pytest.mark.parametrize("kind", ["plain", "batch_norm"])
@pytest.mark.parametrize("scale", ["own_mean", "global_mean"])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_step_is_plain_pytorch_bit_for_bit(kind: str, scale: str, count: int) -> None:
    bank = make_bank(make_net(kind))
    twin, head = twin_of(bank), Head(cut_grad_scale=scale)
    for step in range(3):
        cohort = cohort_of(count, step=step)
        replies = head.step(bank, cohort, replace(AT, step=step))
        losses, gradients = twin.step(cohort, None)
        total = sum(SIZES[:count])
        for a, loss, gradient in zip(cohort, losses, gradients, strict=True):
            scaled = gradient * total / SIZES[a.client] if scale == "own_mean" and count > 1 else gradient
            assert bytes_of(replies[a.client].dz) == bytes_of(scaled)
            assert (replies[a.client].loss, replies[a.client].step) == (loss, step)
        assert list(replies) == [a.client for a in cohort]
        assert {k: bytes_of(v) for k, v in twin.net.state_dict().items()} == {
            k: bytes_of(v) for k, v in settled(bank).module.state_dict().items()
        }


@pytest.mark.parametrize("scale", ["own_mean", "global_mean"])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_step_weighted_by_data(scale: str, count: int) -> None:
    bank = make_bank(make_net("plain"))
    twin, head = twin_of(bank), Head(cut_grad_scale=scale, weights="data")
    for step in range(3):
        cohort = cohort_of(count, step=step)
        replies = head.step(bank, cohort, replace(AT, step=step))
        losses, gradients = twin.step(cohort, [float(a.samples) for a in cohort])
        total = sum(SAMPLES[:count])
        for a, loss, gradient in zip(cohort, losses, gradients, strict=True):
            scaled = gradient * (total / a.samples) if scale == "own_mean" else gradient
            assert torch.allclose(replies[a.client].dz, scaled, rtol=1e-4, atol=1e-8)
            assert math.isclose(replies[a.client].loss, loss, rel_tol=1e-5)
    own = settled(bank).module.state_dict()
    assert all(torch.allclose(own[name], tensor, rtol=1e-4) for name, tensor in twin.net.state_dict().items())


@pytest.mark.parametrize("weights", ["batch", "data"])
def test_own_mean_is_the_gradient_of_the_clients_own_mean_loss(weights: str) -> None:
    net, cohort = make_net("plain"), cohort_of(4)
    replies = Head(weights=weights).step(make_bank(net), cohort, AT)
    for a, want in zip(cohort, own_mean_gradients(net, cohort), strict=True):
        assert torch.allclose(replies[a.client].dz, want, rtol=1e-4, atol=1e-7)


@LAW
@given(st.integers(0, 2**32 - 1), st.integers(0, 9), st.integers(1, 200))
def test_a_scale_by_one_factor_has_the_bits_of_two(seed: int, power: int, clients: int) -> None:
    """Where it is taken: batches of 2^power, so many clients. Elsewhere both are done."""
    x, count = normal((5, 40), seed) * 10.0 ** (seed % 40 - 20), 2**power
    total = count * clients
    assert torch.equal(_times(x.clone(), total, count), x * total / count)
    assert torch.equal(_times(x.clone(), total + 3, count), x * (total + 3) / count)
    assert torch.equal(_times(x.clone(), 3 * total, 3), x * (3 * total) / 3)


@pytest.mark.parametrize("weights", ["batch", "data"])
def test_global_means_add_up_to_the_cohorts_gradient(weights: str) -> None:
    """What a cohort's dz are worth together does not depend on how they are scaled: the weighted sum of the own means."""
    net, cohort = make_net("plain"), cohort_of(3)
    replies = Head(weights=weights, cut_grad_scale="global_mean").step(make_bank(net), cohort, AT)
    counts = [a.samples if weights == "data" else len(a.batch.y) for a in cohort]
    for a, n, own in zip(cohort, counts, own_mean_gradients(net, cohort), strict=True):
        assert torch.allclose(replies[a.client].dz, own * n / sum(counts), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("optimizer", [SGD, Adam(lr=0.01)], ids=repr)
def test_the_step_does_not_touch_what_arrived(optimizer: Optimizer) -> None:
    cohort = cohort_of(1) + cohort_of(3)[1:]
    before = [(bytes_of(a.batch.z), bytes_of(a.batch.y)) for a in cohort]
    for members in (cohort[:1], cohort):
        Head().step(make_bank(make_net("plain"), optimizer), members, AT)
    assert [(bytes_of(a.batch.z), bytes_of(a.batch.y)) for a in cohort] == before
    assert all(not a.batch.z.requires_grad and a.batch.z.grad is None for a in cohort)


def test_copies_learn_from_their_own_client() -> None:
    bank = make_bank(make_net("plain"), per_client=frozenset({"head"}))
    twins = {client: twin_of(bank, client) for client in (0, 2)}
    for step, client in enumerate([2, 0, 2]):
        head = Head(copies="per_client")
        head.step(bank, [arrived(client, step=step)], AT)
        twins[client].step([arrived(client, step=step)], None)
    for client, twin in twins.items():
        own = settled(bank, client).module.state_dict()
        assert all(torch.equal(own[name], tensor) for name, tensor in twin.net.state_dict().items())


# --- which of the four exchanges


@pytest.mark.parametrize("kind", ["plain", "batch_norm", "dropout"])
@pytest.mark.parametrize("optimizer", [SGD, Adam(lr=0.01)], ids=repr)
@pytest.mark.parametrize("count", [1, 3])
def test_a_gradient_probe_changes_nothing(kind: str, optimizer: Optimizer, count: int) -> None:
    bank, other = (make_bank(make_net(kind), optimizer) for _ in range(2))
    for one in (bank, other):
        Head().step(one, cohort_of(count), AT)  # moments and statistics that are not their initial ones
    before = snapshot(bank.get("head"))
    probed = Head().step(bank, cohort_of(count, train=False, step=1), AT)
    assert snapshot(bank.get("head")) == before
    trained = Head().step(bank, cohort_of(count, step=1), AT)
    for client in range(count):
        assert bytes_of(probed[client].dz) == bytes_of(trained[client].dz)
        assert probed[client].loss == trained[client].loss
    Head().step(other, cohort_of(count, step=1), AT)
    assert snapshot(bank.get("head")) == snapshot(other.get("head")) != before


@pytest.mark.parametrize("count", [1, 3])
def test_forward_only_trains_the_head_and_answers_without_a_gradient(count: int) -> None:
    bank, other = (make_bank(make_net("plain")) for _ in range(2))
    silent = Head().step(bank, cohort_of(count, needs_grad=False), AT)
    spoken = Head().step(other, cohort_of(count), AT)
    assert snapshot(bank.get("head")) == snapshot(other.get("head"))
    assert [reply.dz for reply in silent.values()] == [None] * count
    assert [reply.loss for reply in silent.values()] == [reply.loss for reply in spoken.values()]


def test_only_who_asked_gets_a_gradient() -> None:
    cohort = [arrived(0), arrived(1, needs_grad=False), arrived(2)]
    replies = Head().step(make_bank(make_net("plain")), cohort, AT)
    everybody = Head().step(make_bank(make_net("plain")), cohort_of(3), AT)
    assert replies[1].dz is None
    for client in (0, 2):
        assert bytes_of(replies[client].dz) == bytes_of(everybody[client].dz)


@pytest.mark.parametrize("kind", ["plain", "batch_norm", "dropout"])
def test_evaluation_changes_nothing_and_counts(kind: str) -> None:
    bank = make_bank(make_net(kind))
    Head().step(bank, cohort_of(3), AT)
    before, state = snapshot(bank.get("head")), torch.get_rng_state()
    a = arrived(2, train=False, needs_grad=False, step=7)
    reply = Head().evaluate(bank, 2, a.batch)
    assert snapshot(bank.get("head")) == before
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        logits = copy.deepcopy(settled(bank).module).eval()(a.batch.z)
    right = sum(int(row.argmax()) == int(label) for row, label in zip(logits, a.batch.y, strict=True))
    loss = F.cross_entropy(logits, a.batch.y).item()
    assert content(reply) == content(Gradient(step=7, loss=loss, correct=right))


def test_evaluation_asks_the_clients_own_copy() -> None:
    bank = make_bank(make_net("plain"), per_client=frozenset({"head"}))
    batch = arrived(0).batch
    before = Head().evaluate(bank, 0, batch).loss
    Head(copies="per_client").step(bank, [arrived(0)], AT)
    assert Head().evaluate(bank, 0, batch).loss != before
    assert Head().evaluate(bank, 1, batch).loss == before


# --- randomness


def test_dropout_draws_by_who_is_in_the_cohort_and_when() -> None:
    def dz(at: At = AT, **options: int) -> bytes:
        state = torch.get_rng_state()
        reply = Head().step(make_bank(make_net("dropout")), cohort_of(3, **options), at)[1]
        assert torch.equal(torch.get_rng_state(), state)
        return bytes_of(reply.dz)

    torch.rand(5)
    assert dz() == dz()
    assert dz() == dz(replace(AT, step=9, now=5.0, wave_size=2)), "when it was served does not count"
    assert len({dz(), dz(replace(AT, seed=2)), dz(replace(AT, round=3))}) == 3


# --- what goes wrong


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("train", [True, False])
def test_a_loss_that_is_not_finite_stops_before_the_step(count: int, train: bool) -> None:
    bank, cohort = make_bank(make_net("plain")), cohort_of(count, train=train)
    before = snapshot(bank.get("head"))
    cohort[-1].batch.z[0, 0] = math.nan
    with pytest.raises(Diverged, match=r"loss is nan in round 3, cohort 3: lower the learning rates"):
        Head().step(bank, cohort, AT)
    assert snapshot(bank.get("head")) == before


class Root(nn.Module):
    """A finite loss whose gradient at 0 is not."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(CUT, CLASSES)

    def forward(self, z: Tensor) -> Tensor:
        return self.out(z.sqrt())


def test_a_gradient_that_is_not_finite_is_not_sent() -> None:
    cohort = cohort_of(2)
    for a in cohort:
        a.batch.z.zero_()
    with pytest.raises(Diverged, match=r"cut gradient holds NaN or Inf in round 3, cohort 3"):
        Head().step(make_bank(Root()), cohort, AT)


# --- the learning rate


@LAW
@given(st.integers(1, 1000), st.floats(0, 4))
def test_the_rate_grows_with_the_power_of_the_wave(wave_size: int, power: float) -> None:
    assert Head(lr_power=power).lr_factor(wave_size) == pytest.approx(math.exp(power * math.log(wave_size)))
    assert Head().lr_factor(wave_size) == 1.0


@pytest.mark.parametrize(("power", "wave_size", "factor"), [(0.5, 4, 2.0), (1.0, 3, 3.0), (2.0, 3, 9.0), (0.5, 1, 1.0)])
def test_the_rate_of_known_waves(power: float, wave_size: int, factor: float) -> None:
    assert Head(lr_power=power).lr_factor(wave_size) == factor


@pytest.mark.parametrize("power", [-0.1, 4.1, math.nan])
def test_a_power_out_of_range_is_refused(power: float) -> None:
    with pytest.raises(ValidationError, match="lr_power"):
        Head(lr_power=power)
