"""Our SGD against torch's own, bit for bit, however the numbers of a parameter divide into vectors."""

from __future__ import annotations

import copy

import pytest
import torch
from drawn import LAW
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import Parameter

from sl_common.training import torch_optimizers
from sl_common.training.optim import Adam, Sgd
from sl_common.training.torch_optimizers import OnePassSGD

sizes = st.lists(st.integers(1, 80) | st.sampled_from([96, 256, 1000, 4096]), min_size=1, max_size=4)
fractions = st.sampled_from([0.0, 0.5, 0.9])


@st.composite
def rules(draw: st.DrawFn) -> Sgd:
    momentum = draw(fractions)
    nesterov = momentum > 0 and draw(st.booleans())
    dampening = 0.0 if nesterov else draw(fractions)
    return Sgd(
        momentum=momentum, dampening=dampening, weight_decay=draw(st.sampled_from([0.0, 1e-3])), nesterov=nesterov
    )


def everything(params: list[Parameter], rule: torch.optim.Optimizer) -> list[Tensor]:
    moments = [rule.state[p].get("momentum_buffer") for p in params]
    return [p.detach() for p in params] + [m for m in moments if m is not None]


@LAW
@given(rules(), sizes, st.integers(0, 2**32), st.lists(st.sampled_from(["step", "miss", "lr", "restore"]), max_size=12))
def test_steps_are_torch_s_to_the_bit(ours: Sgd, sizes: list[int], seed: int, happens: list[str]) -> None:
    """Gradients that are missing now and then, another learning rate, a state that is loaded."""
    torch.manual_seed(seed)
    both = [[Parameter(p.clone()) for p in first] for first in [[torch.randn(n) for n in sizes]] * 2]
    rules = ours.make(both[0]), torch.optim.SGD(both[1], **ours.model_dump(exclude={"kind"}))
    for number, what in enumerate(["step", "step", *happens]):
        grads = [torch.randn(n) for n in sizes]
        if what == "miss":
            grads[number % len(grads)] = None  # type: ignore[call-overload]
        for params, rule in zip(both, rules, strict=True):
            if what == "lr":
                rule.param_groups[0]["lr"] *= 0.7
            if what == "restore":
                rule.load_state_dict(copy.deepcopy(rule.state_dict()))
            for p, grad in zip(params, grads, strict=True):
                p.grad = None if grad is None else grad.clone()
            rule.step()
        for a, b in zip(*(everything(*one) for one in zip(both, rules, strict=True)), strict=True):
            assert torch.equal(a, b), (what, number)


def test_layouts_other_than_rows_step_the_same() -> None:
    torch.manual_seed(0)
    start = torch.randn(16, 8, 3, 3).to(memory_format=torch.channels_last)
    both = [Parameter(start.clone()) for _ in range(2)]
    rules = Sgd(momentum=0.9).make(both[:1]), torch.optim.SGD(both[1:], lr=0.05, momentum=0.9)
    x = torch.randn(4, 8, 6, 6)
    for _ in range(4):
        for p, rule in zip(both, rules, strict=True):
            rule.zero_grad()
            torch.nn.functional.conv2d(x, p).square().sum().backward()
            rule.step()
    assert torch.equal(*both)


def test_on_this_machine_one_pass_is_taken() -> None:
    """Or the tests above would compare torch with torch."""
    weight = Parameter(torch.ones(32))
    rule = Sgd(momentum=0.9).make([weight])
    for _ in range(2):
        weight.grad = torch.ones(32)
        rule.step()
    assert isinstance(rule, OnePassSGD)
    assert rule._plan is not None
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):
        assert [len(share.params) for share in rule._plan] == [1, 0]


def test_without_torch_s_one_pass_the_bits_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel has a private name, and a later torch may lack it."""
    start, grads = torch.randn(256, generator=torch.Generator().manual_seed(1)), [torch.full((256,), 0.3)] * 4
    found = []
    for missing in (False, True):
        torch_optimizers._is_one_pass_exact.cache_clear()
        if missing:
            monkeypatch.delattr(torch, "_fused_sgd_", raising=False)
        weight = Parameter(start.clone())
        rule = Sgd(momentum=0.9, weight_decay=1e-3).make([weight])
        for grad in grads:
            weight.grad = grad.clone()
            rule.step()
        found.append(weight.detach())
        if missing:
            assert isinstance(rule, OnePassSGD)
            assert rule._plan is not None
            assert not rule._plan[0].params
    torch_optimizers._is_one_pass_exact.cache_clear()
    assert torch.equal(*found)


@pytest.mark.parametrize("rule", [Sgd(momentum=0.9), Adam(), Adam(kind="adamw")])
def test_gradients_are_forgotten_as_torch_forgets_them(rule: Sgd | Adam) -> None:
    params = [Parameter(torch.ones(3)), Parameter(torch.ones(2))]
    optimizer = rule.make(params)
    params[0].grad = torch.ones(3)
    optimizer.zero_grad(set_to_none=False)
    assert params[0].grad.tolist() == [0.0] * 3
    assert params[1].grad is None
    optimizer.zero_grad()
    assert params[0].grad is None


@pytest.mark.parametrize("rule", [Sgd(momentum=0.9), Adam(), Adam(kind="adamw")])
def test_no_marks_are_left_for_torch_s_profiler(rule: Sgd | Adam) -> None:
    """They take longer than a small step; if torch finds another way to leave them, this says so."""
    optimizer = rule.make([p := Parameter(torch.ones(3))])
    p.grad = torch.ones(3)
    with torch.profiler.profile() as profile:
        optimizer.step()
        optimizer.zero_grad()
    assert [event.key for event in profile.key_averages() if event.key.startswith("Optimizer")] == []
