"""Segments draw, learn and remember only where they should; a bank keeps them apart."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from drawn import LAW, bytes_of, normal
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from sl_common.errors import WireError
from sl_common.tensors import state_digest
from sl_common.training import backward as passes
from sl_common.training.bank import Bank
from sl_common.training.modules import buffers_untouched, draws_random_numbers
from sl_common.training.optim import Adam, Optimizer, Sgd
from sl_common.training.segment import Segment


def net(dropout: float = 0.0) -> nn.Sequential:
    """Two BatchNorms, one of which averages cumulatively; initialised from a fixed seed."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return nn.Sequential(
            nn.Conv2d(2, 4, 3),
            nn.BatchNorm2d(4, momentum=None),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(16, 6),
            nn.BatchNorm1d(6),
            nn.Linear(6, 3),
        )


def bits(module: nn.Module) -> dict[str, bytes]:
    return {name: bytes_of(tensor) for name, tensor in module.state_dict().items()}


# --- BatchNorm


def backward(module: nn.Module, x: Tensor) -> list[Tensor]:
    module.zero_grad()
    (module(x) ** 2).sum().backward()
    return [parameter.grad.clone() for parameter in module.parameters() if parameter.grad is not None]


def test_buffers_are_untouched_and_the_gradients_those_of_training() -> None:
    module, x = net().train(), normal((5, 2, 4, 4), 1)
    backward(module, x)  # statistics and counters that are not their initial ones
    twin, before = copy.deepcopy(module), bits(module)
    buffers = {name: buffer.data_ptr() for name, buffer in module.named_buffers()}
    with buffers_untouched(module):
        inside = backward(module, x + 1)
    assert bits(module) == before
    assert {name: buffer.data_ptr() for name, buffer in module.named_buffers()} == buffers
    outside = backward(twin, x + 1)
    assert bits(twin) != before
    assert len(inside) == len(outside) == len(list(module.parameters()))
    assert all(torch.equal(one, other) for one, other in zip(inside, outside, strict=True))


def test_buffers_are_untouched_when_the_pass_fails_or_runs_backward_afterwards() -> None:
    module, x = net().train(), normal((5, 2, 4, 4), 1)
    before = bits(module)
    with pytest.raises(RuntimeError), buffers_untouched(module):
        module(torch.cat([x, x]).view(5, 2, 8, 4))  # passes the first BatchNorm, fails at the Linear
    assert bits(module) == before
    with buffers_untouched(module):
        loss = module(x).sum()
    loss.backward()
    assert bits(module) == before


# --- randomness


class Users(nn.Module):
    """Code that we cannot look into."""

    def forward(self, x: Tensor) -> Tensor:
        return x


QUIET: list[Callable[[], nn.Module]] = [
    lambda: nn.Linear(2, 2),
    lambda: net()[0],
    lambda: nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.ReLU(), nn.MaxPool1d(2)),
    lambda: nn.LSTM(2, 2, num_layers=2),
    lambda: nn.MultiheadAttention(4, 2),
]
DRAWING: list[Callable[[], nn.Module]] = [
    lambda: nn.Dropout(0.1),
    lambda: nn.Sequential(nn.Sequential(nn.Dropout2d(0.5))),
    lambda: nn.AlphaDropout(0.5),
    lambda: nn.FeatureAlphaDropout(0.5),
    lambda: nn.RReLU(),
    lambda: nn.LSTM(2, 2, num_layers=2, dropout=0.5),
    lambda: nn.MultiheadAttention(4, 2, dropout=0.5),
    lambda: nn.TransformerEncoderLayer(4, 2, dropout=0.5),
    lambda: nn.FractionalMaxPool2d(2, output_size=2),
    lambda: nn.FractionalMaxPool3d(2, output_size=2),
    lambda: nn.Sequential(nn.Linear(2, 2), Users()),
]


@pytest.mark.parametrize("make", QUIET, ids=lambda make: repr(make())[:40])
def test_what_draws_nothing_is_known(make: Callable[[], nn.Module]) -> None:
    assert not draws_random_numbers(make())


@pytest.mark.parametrize("make", DRAWING, ids=lambda make: repr(make())[:40])
def test_what_may_draw_is_known(make: Callable[[], nn.Module]) -> None:
    assert draws_random_numbers(make())


def segment(dropout: float = 0.0, lr: float = 0.1) -> Segment:
    return Segment(net(dropout), Sgd(lr=lr, momentum=0.9))


@pytest.mark.parametrize("train", [True, False])
def test_draws_come_from_the_seed_and_leave_the_global_generator_alone(train: bool) -> None:
    x = normal((5, 2, 4, 4), 1)
    state = torch.get_rng_state()
    outputs = []
    for seed, noise in ((1, 0), (1, 7), (2, 0)):
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        outputs.append(segment(dropout=0.5).forward(x, (seed,), train=train))
        assert torch.equal(torch.get_rng_state(), before)
    torch.set_rng_state(state)
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2]) != train


def test_a_quiet_segment_is_plain_pytorch() -> None:
    own, twin, x = segment(), net(), normal((5, 2, 4, 4), 1)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    for step in range(3):
        z = own.forward(x, (step,))
        gradient = normal(tuple(z.shape), step)
        own.backward(z, gradient)
        own.step()
        optimizer.zero_grad()
        twin(x).backward(gradient)
        optimizer.step()
        assert bits(own.module) == bits(twin)


def test_a_torch_whose_engine_has_another_name_gives_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for engine in (passes._ENGINE, None):
        monkeypatch.setattr(passes, "_ENGINE", engine)
        segment = Segment(net(), Sgd())
        z = segment.forward(normal((3, 2, 4, 4), 0), ("d",))
        segment.backward(z, torch.ones_like(z))
        found.append([p.grad.clone() for p in segment.module.parameters()])
    assert len(found[0]) > 4
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_gradient_that_does_not_fit_is_refused() -> None:
    own = segment()
    z = own.forward(normal((5, 2, 4, 4), 1))
    with pytest.raises(WireError, match=r"gradient has shape \(1, .*\), what it is of has \(5, "):
        own.backward(z, torch.ones(1, *z.shape))


def test_forward_without_gradients_and_in_evaluation() -> None:
    own, x = segment(), normal((5, 2, 4, 4), 1)
    assert own.forward(x).requires_grad
    assert not own.forward(x, grad=False).requires_grad
    before = bits(own.module)
    own.forward(x, train=False)
    assert bits(own.module) == before


# --- weights in and out


def test_a_state_is_a_copy() -> None:
    own = segment()
    state, before = own.state(), own.digest()
    assert state_digest(state) == before
    for tensor in state.values():
        tensor.zero_()
    assert own.digest() == before


def test_loading_copies_in_place_and_keeps_the_optimiser() -> None:
    own, other, x = segment(), segment(), normal((5, 2, 4, 4), 1)
    own.backward(own.forward(x).sum())
    own.step()
    momentum = copy.deepcopy(own.optimizer.state_dict()["state"])
    pointers = [t.data_ptr() for t in own.module.state_dict().values()]
    state = other.state()
    own.load(state)
    assert own.digest() == other.digest()
    state["0.weight"].zero_()
    assert own.digest() == other.digest()
    assert [t.data_ptr() for t in own.module.state_dict().values()] == pointers
    kept = own.optimizer.state_dict()["state"]
    assert all(torch.equal(kept[key]["momentum_buffer"], momentum[key]["momentum_buffer"]) for key in momentum)
    assert momentum


BAD_STATES: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "missing": (lambda s: s.pop("5.bias"), r"lower .*missing \['5.bias'\], unknown \[\]"),
    "unknown": (lambda s: s.update(extra=torch.zeros(1)), r"missing \[\], unknown \['extra'\]"),
    "shape": (
        lambda s: s.update({"5.bias": torch.zeros(7)}),
        r"lower: 5.bias is torch.float32 \(7,\), this model has torch.float32 \(6,\)",
    ),
    "dtype": (
        lambda s: s.update({"5.bias": torch.zeros(6, dtype=torch.float64)}),
        r"5.bias is torch.float64 \(6,\), this model has torch.float32 \(6,\)",
    ),
    "nan": (lambda s: s["5.bias"].fill_(math.nan), "5.bias holds NaN or Inf"),
}


@pytest.mark.parametrize("case", BAD_STATES)
def test_weights_that_do_not_fit_are_refused_and_nothing_is_loaded(case: str) -> None:
    own = segment()
    spoil, match = BAD_STATES[case]
    state = {name: tensor + 1 for name, tensor in own.state().items()}
    spoil(state)
    before = own.digest()
    with pytest.raises(WireError, match=match):
        own.load(state, "lower")
    assert own.digest() == before


def test_a_segment_without_parameters_does_nothing_but_compute() -> None:
    own = Segment(nn.Sequential(nn.Flatten(), nn.ReLU()), Sgd())
    x = normal((2, 3, 4), 0)
    z = own.forward(x)
    own.backward(z, torch.ones_like(z))
    own.step()
    own.set_lr(0.5)
    assert torch.equal(z, x.flatten(1).relu())
    assert own.state() == {}
    assert own.nbytes == 0


@LAW
@given(st.floats(1e-6, 10))
def test_the_learning_rate_is_that_of_the_round(lr: float) -> None:
    own = Segment(nn.Linear(1, 1), Sgd(lr=3.0))
    own.set_lr(lr)
    assert [group["lr"] for group in own.optimizer.param_groups] == [lr]


def test_bytes_are_those_of_parameters_and_buffers() -> None:
    assert segment().nbytes == sum(len(data) for data in bits(net()).values())


# --- the bank


def bank(per_client: frozenset[str] = frozenset()) -> Bank:
    return Bank({"head": segment, "aux": segment}, per_client)


def ones(like: Segment, value: float) -> dict[str, Tensor]:
    return {name: torch.full_like(tensor, value) for name, tensor in like.state().items()}


def test_a_shared_part_is_one_segment() -> None:
    own = bank()
    assert own.get("head") is own.get("head", 0) is own.get("head", 1)
    assert own.get("head") is not own.get("aux")
    assert own.parts == ("head", "aux")
    assert "head" in own
    assert "lower" not in own
    assert own.copies("head") == {}


def test_a_copy_starts_from_the_weights_that_were_last_loaded_for_all() -> None:
    own = bank(frozenset({"head"}))
    assert own.get("head", 4).digest() == own.get("head").digest()
    own.load("head", ones(own.get("head"), 2.0))
    late = own.get("head", 1)
    assert late.digest() == own.get("head", 4).digest() == state_digest(ones(late, 2.0))
    assert list(own.copies("head")) == [1, 4]
    assert own.copies("aux") == {}
    assert own.is_per_client("head")
    assert not own.is_per_client("aux")


def test_copies_learn_alone() -> None:
    own = bank(frozenset({"head"}))
    x, before = normal((5, 2, 4, 4), 1), own.get("head").digest()
    for client, other in itertools.permutations([0, 1]):
        untouched = own.get("head", other).digest()
        mine = own.get("head", client)
        mine.backward(mine.forward(x).sum())
        mine.step()
        assert own.get("head", other).digest() == untouched
        assert mine.digest() != before
    assert own.get("head").digest() == before


def test_who_leaves_is_forgotten() -> None:
    own = bank(frozenset({"head"}))
    own.get("head", 0).load(ones(own.get("head"), 9.0))
    own.get("head", 1)
    own.forget(0)
    assert list(own.copies("head")) == [1]
    assert own.get("head", 0).digest() == own.get("head").digest()


# --- another layout in memory


@pytest.mark.parametrize(
    ("optimizer", "dtype"), [(Sgd(lr=0.1, momentum=0.9), torch.float32), (Adam(lr=0.01), torch.float64)]
)
def test_channels_last_is_the_same_network_to_everybody_else(optimizer: Optimizer, dtype: torch.dtype) -> None:
    """Close to the usual layout; what leaves the segment lies in rows, and a snapshot of either goes on in the other."""
    rows, last = (Segment(wide_net().to(dtype), optimizer, channels_last=value) for value in (False, True))
    assert last.module[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not last.module[0].weight.is_contiguous()

    def train(segment: Segment, seed: int) -> Tensor:
        x = normal((4, 3, 8, 8), seed, dtype).requires_grad_()
        segment.backward(F.cross_entropy(segment.forward(x), torch.arange(4)), awaited=x)
        segment.step()
        assert x.grad.is_contiguous()
        return x.grad

    def assert_alike() -> None:
        states = (rows.state(), last.state())
        assert all(t.is_contiguous() for t in states[1].values())
        torch.testing.assert_close(*states, rtol=1e-3, atol=1e-5)

    assert rows.digest() == last.digest()
    for step in range(4):
        torch.testing.assert_close(train(rows, step), train(last, step), rtol=1e-3, atol=1e-5)
    assert_alike()
    last.restore(rows.snapshot())
    assert rows.digest() == last.digest()
    for step in range(3):
        train(rows, step), train(last, step)
    assert_alike()
    before = last.snapshot()
    train(last, 9)
    after = last.digest()
    last.restore(before)
    train(last, 9)
    assert last.digest() == after


def wide_net() -> nn.Sequential:
    """Its weights have whole vectors of numbers, as those that take one pass of SGD must have."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return nn.Sequential(
            nn.Conv2d(3, 16, 3, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(256, 10),
        )


def test_a_bank_takes_the_steps_that_were_put_off_wherever_they_were() -> None:
    """Twice in a row as once; a copy that was given up, or gone back on, takes none."""
    bank = Bank({"head": lambda: Segment(wide_net(), Sgd(lr=0.1))}, frozenset({"head"}))
    fresh = bytes_of(bank.get("head").module[0].weight)

    def weights() -> list[bytes]:
        return [bytes_of(bank.get("head", client).module[0].weight) for client in (0, 1)]

    def train(client: int) -> None:
        head, x = bank.get("head", client), normal((4, 3, 8, 8), client).requires_grad_()
        head.backward(F.cross_entropy(head.forward(x), torch.arange(4)), awaited=x)
        head.defer_step()

    train(0), train(1)
    assert weights() == [fresh, fresh], "put off"
    bank.run_deferred_step()
    once = weights()
    assert len({fresh, *once}) == 3
    bank.run_deferred_step()
    assert weights() == once
    before = bank.snapshot()
    train(0), train(1)
    given_up = bank.get("head", 1).module
    bank.forget(1)
    bank.restore(before)
    bank.run_deferred_step()
    assert weights() == once
    assert given_up is not bank.get("head", 1).module
