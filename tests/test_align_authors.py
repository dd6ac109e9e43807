"""Alignment as FSL-SAGE's authors program it: losses that are means, Adam's eps as torch has it, client after client (fsl_sage.md b)."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from test_align import sage
from test_equivalence import batches, halves, loaders, lower_of, run, whole_model
from test_local_loss import aux_of
from torch import Tensor, nn

from sl_common.config.run_config import RunConfig
from sl_common.network.network import Network
from sl_common.protocol import At
from sl_common.protocol.align import Alignment, AlignmentSamples
from sl_common.training.optim import Adam, Cosine, Sgd
from sl_common.training.segment import Segment
from sl_server.preflight.check import inspect
from sl_server.simulation.simulation import Simulation

ADAM = '{ kind = "adam", lr = 0.001 }'
EPOCHS = 5


def authors(eps: str = "scaled", **more: object) -> RunConfig:
    return sage(
        protocol__barrier__unit='"epoch"',
        client__optimizer=ADAM,
        server__optimizer=ADAM,
        server__alignment=f'{{ epochs = {EPOCHS}, batch_size = 1000, eps = "{eps}", optimizer = {ADAM} }}',
        eval__every=0,
        **({"protocol__gate__record": 32} | more),
    )


def adam(module: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam(module.parameters(), lr=1e-3)


def align(aux: nn.Module, optimizer: torch.optim.Adam, head: nn.Module, memory: list[tuple[Tensor, Tensor]]) -> None:
    """Targets are the gradient of the mean loss of the whole memory, estimates that of a minibatch, here as large as the memory."""
    z = torch.stack([one for one, _ in memory]).requires_grad_()
    y = torch.stack([label for _, label in memory])
    (targets,) = torch.autograd.grad(F.cross_entropy(head(z), y), z)
    for _ in range(EPOCHS):
        own = z.detach().requires_grad_()
        (estimates,) = torch.autograd.grad(F.cross_entropy(aux(own), y), own, create_graph=True)
        optimizer.zero_grad()
        (estimates - targets).square().sum().backward()
        optimizer.step()


def authors_loop(config: RunConfig) -> dict[str, Tensor]:
    """All weights after the run, by name."""
    lower, head = halves(whole_model(config), 1)
    lowers, auxes = ([copy.deepcopy(m) for _ in range(3)] for m in (lower, Network.build(config).aux))
    steps, aux_steps, head_step = [adam(m) for m in lowers], [adam(m) for m in auxes], adam(head)
    memories: list[list[tuple[Tensor, Tensor]]] = [[], [], []]
    for round in range(config.run.rounds):
        for client, loader in enumerate(loaders(config)):
            for number, batch in enumerate(batches(config, loader, round)):
                z = lowers[client](batch.x)
                if number % config.protocol.learner.send_every == 0:
                    head_step.zero_grad()
                    F.cross_entropy(head(z.detach()), batch.y).backward()
                    head_step.step()
                    memories[client] += zip(z.detach(), batch.y, strict=True)
                    del memories[client][: -config.protocol.gate.record]
                if round % config.protocol.gate.align_every == 0 and number == 0:
                    align(auxes[client], aux_steps[client], head, memories[client])
                steps[client].zero_grad()
                F.cross_entropy(auxes[client](z), batch.y).backward()
                steps[client].step()
        counts = [loader.samples for loader in loaders(config)]
        states = [m.state_dict() for m in lowers]
        mean = {k: sum(s[k] * (n / sum(counts)) for s, n in zip(states, counts, strict=True)) for k in states[0]}
        for m in lowers:
            m.load_state_dict(mean)
    found = {f"head.{k}": t for k, t in head.state_dict().items()}
    for client in range(3):
        found |= {f"{client}.lower.{k}": t for k, t in lowers[client].state_dict().items()}
        found |= {f"{client}.aux.{k}": t for k, t in auxes[client].state_dict().items()}
    return found


def weights_of(simulation: Simulation) -> dict[str, Tensor]:
    found = {f"head.{k}": t for k, t in simulation.coordinator.bank.get("head").state().items()}
    for client in range(3):
        found |= {f"{client}.lower.{k}": t for k, t in lower_of(simulation, client).items()}
        found |= {f"{client}.aux.{k}": t for k, t in aux_of(simulation, client).items()}
    return found


def distance(config: RunConfig) -> float:
    """The relative difference of all weights."""
    want, got = authors_loop(config), weights_of(run(config))
    assert want.keys() == got.keys()
    difference = sum((want[k].double() - got[k].double()).square().sum().item() for k in want)
    return float((difference / sum(t.double().square().sum().item() for t in want.values())) ** 0.5)


def test_ours_is_the_authors_loop() -> None:
    """With eps relative to N², one client's whole wave after another's, and as many samples in each alignment: Adam's moments of an
    earlier one are of gradients N² times smaller there.
    """
    assert distance(authors()) < 2e-7
    assert distance(authors("plain")) > 5e-6


@pytest.mark.parametrize("count", [7, 30, 100])
def test_eps_follows_the_stored_samples(count: int) -> None:
    """In each of its steps, and in no other: a snapshot in between has the configuration's. An optimiser without one is left alone."""
    memory = AlignmentSamples(
        z=torch.randn(count, 4), y=torch.zeros(count, dtype=torch.int64), targets=torch.zeros(count, 4)
    )
    seen: set[float] = set()

    class Watched(Segment):
        def step(self) -> None:
            seen.add(self.optimizer.param_groups[0]["eps"])
            super().step()

    aux = Watched(nn.Linear(4, 3), Adam(lr=1e-3))
    for how, eps in ((Alignment(epochs=1), 1e-8 * count**2), (Alignment(epochs=1, eps="plain"), 1e-8)):
        seen.clear()
        how.run(aux, memory, (0,))
        assert sorted(seen) == [pytest.approx(eps)]
        assert [group["eps"] for group in aux.optimizer.param_groups] == [1e-8]
    plain = Segment(nn.Linear(4, 3), Sgd(lr=0.01))
    Alignment(epochs=1, optimizer=Sgd(lr=0.01)).run(plain, memory, (0,))
    assert "eps" not in plain.optimizer.param_groups[0]


def test_the_heads_schedule_is_not_the_alignments() -> None:
    """It has one of its own."""
    assert [Alignment().lr(r, 10) for r in (0, 9)] == [1e-3, 1e-3]
    falling = Alignment(schedule=Cosine())
    assert falling.lr(9, 10) < falling.lr(0, 10) == 1e-3
    config = authors(server__schedule='{ kind = "cosine" }')  # aligned in rounds 0 and 2 of 3
    assert run(config).coordinator.bank.get("aux", 0).optimizer.param_groups[0]["lr"] == 1e-3


def test_warm_rounds_record_nothing() -> None:
    """The first alignment learns from one batch, as in the authors' program, not from all that the warm rounds sent."""
    config = authors(
        protocol__gate__warm_start=1, protocol__merge__parts='["lower", "aux"]', protocol__gate__record=1000
    )
    gate = config.protocol.gate
    assert gate.decide([], At(seed=0, round=0)).record is None
    assert gate.decide([1.0], At(seed=0, round=1)).record is not None
    simulation = Simulation(config)
    samples = []
    advance = simulation.coordinator.alignments.jobs

    def jobs() -> list:
        found = advance()
        samples.extend((simulation.coordinator.progress.round, job.samples) for job in found)
        return found

    simulation.coordinator.alignments.jobs = jobs
    simulation.run()
    assert [count for round, count in samples if round == 1] == [32, 32, 32]
    assert inspect(config).aligning is not None
