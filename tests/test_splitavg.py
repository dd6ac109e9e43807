"""SplitAvg over batches of unequal sizes, in every scale (sglr.md, g6 and the corrections)."""

from __future__ import annotations

import copy
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from test_equivalence import batches, config_of, loaders, lower_of, whole_model
from torch import Tensor, nn

from sl_client.data import Data
from sl_common.config.run_config import RunConfig
from sl_common.messages.training import Smashed
from sl_common.protocol import Arrived, At, Averaged, Head
from sl_common.training.bank import Bank
from sl_common.training.optim import Sgd
from sl_common.training.segment import Segment
from sl_server.simulation.simulation import Simulation

AT = At(seed=0, round=0, rounds=4)
SCALES = list(product(("own_mean", "global_mean"), ("batch", "data")))


def bank_of(net: nn.Module) -> Bank:
    return Bank({"head": lambda: Segment(copy.deepcopy(net), Sgd(lr=0.1))}, frozenset())


def cohort_of(sizes: list[int], samples: list[int], *, alike: bool) -> list[Arrived]:
    """Batches of random numbers, or of one sample again and again."""
    draw = torch.Generator().manual_seed(0)
    one = torch.randn(1, 5, generator=draw)
    cohort = []
    for client, (size, count) in enumerate(zip(sizes, samples, strict=True)):
        z = one.expand(size, 5).clone() if alike else torch.randn(size, 5, generator=draw)
        y = torch.ones(size, dtype=torch.int64) if alike else torch.randint(3, (size,), generator=draw)
        cohort.append(Arrived(client=client, batch=Smashed(step=0, z=z, y=y), samples=count))
    return cohort


def replies(cohort: list[Arrived], scatter: Averaged | None, scale: str, weights: str) -> list[Tensor]:
    head = Head(cut_grad_scale=scale, weights=weights, **({} if scatter is None else {"scatter": scatter}))
    torch.manual_seed(1)
    bank = bank_of(nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)))
    return [gradient.dz for _, gradient in sorted(head.step(bank, cohort, AT).items())]


@pytest.mark.parametrize(("scale", "weights"), SCALES)
@pytest.mark.parametrize("unequal", ["mean", "error"])
def test_sharing_changes_nothing_for_clients_that_are_alike(scale: str, weights: str, unequal: str) -> None:
    """g6, with batches of 10 and 100, and data of other proportions: each gets its own gradient, once."""
    sizes = [10, 100, 37] if unequal == "mean" else [16, 16, 16]
    cohort = cohort_of(sizes, [500, 40, 1000], alike=True)
    shared = replies(cohort, Averaged(fraction=1.0, unequal=unequal), scale, weights)
    for own, got in zip(replies(cohort, None, scale, weights), shared, strict=True):
        torch.testing.assert_close(got, own, rtol=1e-5, atol=1e-9)


def per_sample_gradients(cohort: list[Arrived]) -> list[Tensor]:
    """d(a sample's own loss)/dz, sample by sample."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    found = []
    for a in cohort:
        z = a.batch.z.clone().requires_grad_()
        for row, label in zip(net(z), a.batch.y, strict=True):
            F.cross_entropy(row[None], label[None]).backward(retain_graph=True)
        found.append(z.grad)
    return found


@pytest.mark.parametrize(("scale", "weights"), SCALES)
def test_unequal_batches_share_the_mean_gradient_of_their_samples(scale: str, weights: str) -> None:
    """own_mean: the mean over clients of Σⱼ g_kj, over |Bᵢ|; otherwise each client's weight in the loss in place of 1/|Bᵢ|."""
    sizes, samples = [10, 100, 37], [500, 40, 1000]
    cohort = cohort_of(sizes, samples, alike=False)
    own = [g.mean(dim=0) for g in per_sample_gradients(cohort)]
    common = sum(own) / 3
    got = replies(cohort, Averaged(fraction=1.0, unequal="mean"), scale, weights)
    for size, count, g in zip(sizes, samples, got, strict=True):
        weight = {
            ("own_mean", "batch"): 1 / size,
            ("own_mean", "data"): 1 / size,
            ("global_mean", "batch"): 1 / sum(sizes),
            ("global_mean", "data"): count / sum(samples) / size,
        }[scale, weights]
        torch.testing.assert_close(g, (common * weight).expand(size, 5), rtol=1e-4, atol=1e-8)


def test_who_does_not_share_keeps_its_own_bits() -> None:
    """Of three clients two share."""
    cohort = cohort_of([10, 100, 37], [500, 40, 1000], alike=False)
    scatter = Averaged(fraction=0.7, unequal="mean")
    (alone,) = {0, 1, 2} - set(scatter.sharing([0, 1, 2], AT))
    own, got = (replies(cohort, s, "own_mean", "batch") for s in (None, scatter))
    assert torch.equal(own[alone], got[alone])
    assert not any(torch.equal(own[c], got[c]) for c in {0, 1, 2} - {alone})


# --- through the coordinator


def alike(_root: Path | None) -> Data:
    """One sample 240 times, for an `alpha` that deals one class unequally."""
    x = torch.linspace(-1, 1, 64).view(1, 1, 8, 8).expand(240, 1, 8, 8).clone()
    y = torch.zeros(240, dtype=torch.int64)
    return Data(train=(x, y), test=(x[:8], y[:8]), classes=10)


def sglr(scale: str, weights: str, fraction: float, **more: object) -> RunConfig:
    return config_of(
        "sglr",
        protocol__head__scatter=f'{{ kind = "averaged", fraction = {fraction}, unequal = "mean" }}',
        protocol__head__cut_grad_scale=f'"{scale}"',
        protocol__head__weights=f'"{weights}"',
        protocol__head__lr_power=0,
        data__partition='{ kind = "dirichlet", alpha = 0.5 }',
        client__wave="{ epochs = 1 }",
        run__rounds=1,
        eval__every=0,
        **more,
    )


def simulated(config: RunConfig, **allowed: object) -> Simulation:
    simulation = Simulation(config, **allowed)
    simulation.run()
    assert simulation.coordinator.ended.finished
    return simulation


OURS = {"data__name": '"test_splitavg:alike"', "model__input": "[1, 8, 8]", "model__classes": 10}


@pytest.mark.parametrize(("scale", "weights"), SCALES)
def test_clients_that_are_alike_train_as_without_sharing(scale: str, weights: str) -> None:
    """g6 in a run: one sample, dealt to three clients in shards of unequal sizes.

    With `global_mean` and weights by data they take steps of different lengths, and are alike for the first one alone.
    """
    one_step = {"data__batch_size": 240} if (scale, weights) == ("global_mean", "data") else {}
    configs = [sglr(scale, weights, fraction, **OURS, **one_step) for fraction in (0.0, 1.0)]
    runs = [simulated(config, allowed=["test_splitavg"]) for config in configs]
    sizes = {seat.data.samples for seat in runs[0].seats.values()}
    assert len(sizes) == 3
    for client in range(3):
        for name, tensor in lower_of(runs[0], client).items():
            torch.testing.assert_close(lower_of(runs[1], client)[name], tensor, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("scale", "weights"), SCALES)
def test_a_run_is_a_plain_loop(scale: str, weights: str) -> None:
    """Autograd through each client's lower part from a gradient put together sample by sample."""
    config = sglr(scale, weights, 1.0)
    simulation = simulated(config)
    plain, loaded = whole_model(config), loaders(config)
    head = plain[1:]
    lowers = [copy.deepcopy(plain[:1]) for _ in range(3)]
    steps = [torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9) for m in (*lowers, head)]
    coming = [batches(config, loader, 0) for loader in loaded]
    unequal = 0
    for number in range(max(map(len, coming))):
        clients = [c for c in range(3) if number < len(coming[c])]
        group = [coming[c][number] for c in clients]
        unequal += len({len(batch.y) for batch in group}) > 1
        for step in steps:
            step.zero_grad()
        zs = [lowers[c](batch.x) for c, batch in zip(clients, group, strict=True)]
        leaves = [z.detach().requires_grad_() for z in zs]
        sums = [F.cross_entropy(head(leaf), b.y, reduction="sum") for leaf, b in zip(leaves, group, strict=True)]
        sizes, counts = [len(b.y) for b in group], [loaded[c].samples for c in clients]
        total = sum(sizes)
        in_loss = [1 / total if weights == "batch" else n / sum(counts) / b for n, b in zip(counts, sizes, strict=True)]
        sum(w * one for w, one in zip(in_loss, sums, strict=True)).backward()
        common = sum(leaf.grad.mean(0) / w for leaf, w in zip(leaves, in_loss, strict=True)) / len(clients)
        for z, leaf, size, w in zip(zs, leaves, sizes, in_loss, strict=True):
            share = 1 / size if scale == "own_mean" else w
            z.backward(leaf.grad / w * share if len(zs) == 1 else (common * share).expand_as(z))
        for client in (*clients, 3):
            steps[client].step()
    assert unequal
    for client in range(3):
        for name, tensor in lowers[client].state_dict().items():
            torch.testing.assert_close(lower_of(simulation, client)[name], tensor, rtol=2e-4, atol=2e-6)
    for name, tensor in head.state_dict().items():
        got = simulation.coordinator.bank.get("head").state()[name]
        torch.testing.assert_close(got, tensor, rtol=2e-4, atol=2e-6)
