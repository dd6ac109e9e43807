"""A backward pass in two halves: what waits and what does not, and that the bits are those of one pass."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from drawn import bytes_of, normal
from torch import Tensor, nn

from sl_common.models import MODELS, build, split_blocks
from sl_common.training import backward
from sl_common.training.backward import LARGE, backward_to, has_large_products
from sl_common.training.optim import Adam, Optimizer, Sgd
from sl_common.training.segment import Segment

SIDE = 256
assert SIDE * SIDE >= LARGE


class Residual(nn.Module):
    """The gradient of its output goes two ways."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Again(nn.Module):
    """One module's weights, used so many times."""

    def __init__(self, inner: nn.Module, times: int) -> None:
        super().__init__()
        self.inner, self.times = inner, times

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            x = self.inner(x).tanh()
        return x


class Tied(nn.Module):
    """A matrix, the same transposed, and one transposition that two products share."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(SIDE, SIDE) / SIDE)

    def forward(self, x: Tensor) -> Tensor:
        turned = self.weight.t()
        return (x @ turned).tanh() @ turned + F.linear(x, self.weight) + x @ self.weight


class Doubled(nn.Module):
    """Its bias is large, and is no product's alone."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(SIDE, SIDE)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.linear.bias


def frozen(module: nn.Module, *names: str) -> nn.Module:
    for name in names:
        module.get_parameter(name).requires_grad_(False)
    return module


# name: (module, one sample's shape, parameters whose gradients wait)
HEADS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], set[str]]] = {
    "convolution": (lambda: nn.Conv2d(3, 4, 3), (3, 8, 8), {"0.weight", "0.bias"}),
    "convolution without a bias": (lambda: nn.Conv2d(3, 4, 3, bias=False), (3, 8, 8), {"0.weight"}),
    "one dimension": (lambda: nn.Conv1d(3, 4, 3), (3, 8), {"0.weight", "0.bias"}),
    "three dimensions": (lambda: nn.Conv3d(2, 3, 2), (2, 4, 4, 4), {"0.weight", "0.bias"}),
    "groups": (lambda: nn.Conv2d(4, 4, 3, groups=4), (4, 8, 8), {"0.weight", "0.bias"}),
    "transposed": (lambda: nn.ConvTranspose2d(3, 4, 3, stride=2), (3, 4, 4), {"0.weight", "0.bias"}),
    "linear": (lambda: nn.Linear(SIDE, SIDE), (SIDE,), {"0.weight", "0.bias"}),
    "linear over tokens": (lambda: nn.Linear(SIDE, SIDE), (3, SIDE), {"0.weight", "0.bias"}),
    "a small linear": (lambda: nn.Linear(8, 8), (8,), set()),
    "a residual": (lambda: Residual(nn.Conv2d(3, 3, 3, padding=1)), (3, 8, 8), {"0.inner.weight", "0.inner.bias"}),
    "batch norm between": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3)),
        (3, 8, 8),
        {"0.0.weight", "0.0.bias", "0.3.weight", "0.3.bias"},
    ),
    "weights used twice": (lambda: Again(nn.Conv2d(3, 3, 3, padding=1), 2), (3, 8, 8), set()),
    "weights used three times": (lambda: Again(nn.Linear(SIDE, SIDE), 3), (SIDE,), set()),
    "tied weights": (Tied, (SIDE,), set()),
    "a bias used twice": (Doubled, (SIDE,), {"0.linear.weight"}),
    "a frozen weight": (lambda: frozen(nn.Conv2d(3, 4, 3), "weight"), (3, 8, 8), set()),
    "a frozen bias": (lambda: frozen(nn.Conv2d(3, 4, 3), "bias"), (3, 8, 8), {"0.weight"}),
    "attention": (lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0), (4, 8), set()),
    "recurrent": (lambda: Last(nn.LSTM(4, 5, batch_first=True)), (6, 4), set()),
    "nothing to learn": (nn.Flatten, (3, 4), set()),
}


class Last(nn.Module):
    """The outputs of a recurrent module."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x)[0]
        return out


def net(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return nn.Sequential(HEADS[name][0](), nn.Tanh())


def bits(module: nn.Module) -> dict[str, bytes]:
    return {name: bytes_of(t) for name, t in module.state_dict().items()}


def without_gradient(module: nn.Module) -> set[str]:
    return {name for name, p in module.named_parameters() if p.grad is None and p.requires_grad}


@pytest.mark.parametrize("name", HEADS)
def test_the_bits_are_those_of_one_pass_and_only_large_weights_wait(name: str) -> None:
    """Against plain PyTorch, over steps, with a momentum that remembers every gradient."""
    _, shape, late = HEADS[name]
    twin, own = net(name), Segment(net(name), Sgd(lr=0.1, momentum=0.9))
    params = [p for p in twin.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(params, lr=0.1, momentum=0.9) if params else None
    for step in range(4):
        x, own_x = (normal((5, *shape), step).requires_grad_() for _ in range(2))
        loss = twin(x).square().mean()
        twin.zero_grad()
        loss.backward()
        own.backward(own.forward(own_x, (step,)).square().mean(), awaited=own_x)
        assert torch.equal(own_x.grad, x.grad)
        assert without_gradient(own.module) == late
        own.defer_step()
        own.run_deferred_step()
        for (which, mine), plain in zip(own.module.named_parameters(), twin.parameters(), strict=True):
            assert (mine.grad is None) == (plain.grad is None), which
            assert mine.grad is None or torch.equal(mine.grad, plain.grad), which
        if optimizer is not None:
            optimizer.step()
        assert bits(own.module) == bits(twin)


SHAPES = {"mlp": (1, 8, 8), "cnn": (1, 12, 12), "resnet18": (3, 32, 32)}


@pytest.mark.parametrize(
    "optimizer", [Sgd(lr=0.1, momentum=0.9, weight_decay=0.01), Adam(lr=0.01)], ids=lambda o: o.kind
)
@pytest.mark.parametrize("model", SHAPES)
def test_the_models_that_ship_end_with_the_same_bits(model: str, optimizer: Optimizer) -> None:
    assert model in MODELS
    head = split_blocks(build(model, input=SHAPES[model], classes=10, args={}, seed=1), 1)[1]
    lower = split_blocks(build(model, input=SHAPES[model], classes=10, args={}, seed=1), 1)[0]
    ends, gradients = [], []
    for halves in (True, False):
        own = Segment(copy.deepcopy(head), optimizer, halves=halves)
        for step in range(3):
            z = lower(normal((4, *SHAPES[model]), step)).detach().requires_grad_()
            own.backward(F.cross_entropy(own.forward(z), torch.arange(4)), awaited=z)
            own.defer_step()
        gradients.append(z.grad)
        ends.append(own.digest())
    assert ends[0] == ends[1]
    assert torch.equal(*gradients)


def test_a_pass_whose_step_nobody_takes_computes_no_more() -> None:
    """As after a gradient probe: what was put off is forgotten, the next pass is whole."""
    own = Segment(net("convolution"), Sgd(lr=0.1))
    before = own.digest()
    for _ in range(2):
        x = normal((2, 3, 8, 8), 0).requires_grad_()
        own.backward(own.forward(x).sum(), awaited=x)
    own.run_deferred_step()
    assert without_gradient(own.module) == {"0.weight", "0.bias"}
    assert own.digest() == before
    own.clear()
    own.step()
    assert own.digest() == before


def test_a_step_that_was_put_off_is_not_lost_to_a_restore_or_a_snapshot() -> None:
    own, twin = (Segment(net("convolution"), Sgd(lr=0.1, momentum=0.9)) for _ in range(2))
    snapshots = []
    for segment, soon in ((own, True), (twin, False)):
        x = normal((2, 3, 8, 8), 0).requires_grad_()
        segment.backward(segment.forward(x).sum(), awaited=x if soon else None)
        segment.defer_step()
        snapshots.append(segment.snapshot())
    assert own.digest() == twin.digest()
    moments = [s["optimizer"]["state"][0]["momentum_buffer"] for s in snapshots]
    assert torch.equal(*moments)
    x = normal((2, 3, 8, 8), 1).requires_grad_()
    own.backward(own.forward(x).sum(), awaited=x)
    own.defer_step()
    own.restore(snapshots[1])
    own.run_deferred_step()
    assert own.digest() == twin.digest()


def test_a_loss_that_does_not_depend_on_what_is_waited_for_is_one_pass() -> None:
    layer, x = nn.Conv2d(3, 4, 3), normal((2, 3, 8, 8), 0)
    elsewhere = torch.ones(2, requires_grad=True)
    second_half = backward_to(elsewhere, layer(x).sum())
    once = layer.weight.grad.clone()
    second_half()
    assert torch.equal(layer.weight.grad, once)
    assert elsewhere.grad is None


def test_the_second_half_is_taken_once() -> None:
    layer, x = nn.Conv2d(3, 4, 3), normal((2, 3, 8, 8), 0).requires_grad_()
    second_half = backward_to(x, layer(x).sum())
    assert layer.weight.grad is None
    second_half()
    once = layer.weight.grad.clone()
    second_half()
    assert torch.equal(layer.weight.grad, once)


@pytest.mark.parametrize("missing", ["_ENGINE", "GradientEdge"])
def test_a_torch_that_cannot_take_halves_takes_one_pass(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def other(*_: object) -> None:
        raise TypeError("other arguments")

    monkeypatch.setattr(backward, missing, None if missing == "_ENGINE" else other)
    backward._takes_halves.cache_clear()
    try:
        own, x = Segment(net("convolution"), Sgd(lr=0.1)), normal((2, 3, 8, 8), 0).requires_grad_()
        own.backward(own.forward(x).sum(), awaited=x)
        assert not without_gradient(own.module)
    finally:
        monkeypatch.undo()
        backward._takes_halves.cache_clear()
    assert backward._takes_halves(), "the torch of these tests can"


def test_small_networks_are_left_alone() -> None:
    assert not has_large_products(nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10)))
    assert has_large_products(nn.Linear(SIDE, SIDE))
    assert has_large_products(nn.Conv1d(1, 1, 1))
    assert not has_large_products(nn.Flatten())
