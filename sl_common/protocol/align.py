"""Alignment: an auxiliary network learns to give the cut gradients that the head would give (FSL-SAGE, Nair et al., ICML 2025).

min over aux of the mean over stored samples of ‖d CE(aux(z), y)/dz − d CE(head(z), y)/dz‖². The estimate is itself a gradient, so
this takes double backprop. All gradients here are of a sample's own loss (sums over samples, not means): the authors' code compares
means over batches of different sizes, which is the same only where those sizes are equal. Whoever uses an estimate divides it by
the size of its own batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor

from sl_common.errors import Diverged, WireError
from sl_common.seeds import Draw, torch_generator
from sl_common.training.optim import Adam, Constant, Optimizer, Schedule
from sl_common.training.segment import Segment
from sl_common.training.singles import reason_against_one
from sl_common.value import Value


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AlignmentSamples:
    """Stored samples of one client, on one device."""

    z: Tensor  # (N, *cut)
    y: Tensor  # (N,) int64
    targets: Tensor  # (N, *cut), d(own loss of each sample)/dz


class Alignment(Value):
    """How the server aligns a client's auxiliary network.

    `eps`: in the authors' code the loss is made of means over N stored samples, so that its gradients are N² times smaller than ours, and
    Adam's eps acts on those. With `scaled` the optimiser's eps is multiplied by N² (1e-8 becomes 0.01 for N = 1000), which takes the same
    steps as theirs as long as N stays the same; with `plain` it is taken as it is. `schedule`: of the learning rate over the rounds; the head's own does not count.

    `targets`: `refreshed` from the head as it is now, as the authors do, or `stored` when the samples were trained on, as the paper's
    sum is written. `head_buffers`: a refresh uses the statistics of all stored samples and leaves BatchNorm's own as they are, or
    `updated` with them, as the authors' code does.
    """

    epochs: PositiveInt = 100
    batch_size: PositiveInt = 1000
    optimizer: Optimizer = Adam(lr=1e-3)
    schedule: Schedule = Constant()
    eps: Literal["scaled", "plain"] = "scaled"
    targets: Literal["refreshed", "stored"] = "refreshed"
    head_buffers: Literal["kept", "updated"] = "kept"

    def refresh(self, head: Segment, z: Tensor, y: Tensor, draw: Draw) -> Tensor:
        """d(own loss of each sample)/dz (N, *cut) by the head as it is; no step."""
        z = z.detach().to(head.device).requires_grad_()
        logits = head.forward(z, draw, keep_buffers=self.head_buffers == "kept")
        return head.gradient(F.cross_entropy(logits, y.to(head.device), reduction="sum"), z)

    def lr(self, round: int, rounds: int) -> float:
        """The learning rate of a round."""
        return self.optimizer.lr * self.schedule.factor(round, rounds)

    def run(self, aux: Segment, memory: AlignmentSamples, draw: Draw) -> tuple[float, float]:
        """Train aux; mean squared error per sample over the first epoch and over the last. Leaves aux's buffers as they are.

        Raises WireError if the first error is not finite, before anything was learnt: the samples are to blame. Diverged if a later one is not,
        ValueError if nothing is stored.
        """
        if not len(memory.y):
            raise ValueError("alignment with an empty memory")
        least = self._least(aux, memory)
        with self._scaled(aux, len(memory.y)):
            errors = [self._epoch(aux, memory, (*draw, epoch), least) for epoch in range(self.epochs)]
        return errors[0], errors[-1]

    @contextmanager
    def _scaled(self, aux: Segment, samples: int) -> Iterator[None]:
        """Let Adam's eps fit gradients of a sum over so many samples; afterwards it is the configuration's, as snapshots expect."""
        if not isinstance(self.optimizer, Adam) or self.eps == "plain":
            yield
            return
        aux.set_eps(self.optimizer.eps * samples**2)
        try:
            yield
        finally:
            aux.set_eps(self.optimizer.eps)

    def _least(self, aux: Segment, memory: AlignmentSamples) -> int:
        """Samples of the smallest batch: two where there would be one of a single sample, and the network cannot train on that."""
        alone = self.batch_size == 1 or len(memory.y) % self.batch_size == 1
        takes_one = not alone or reason_against_one(aux.module, memory.z[0]) is None
        return 1 if takes_one else 2

    def _epoch(self, aux: Segment, memory: AlignmentSamples, draw: Draw, least: int) -> float:
        count = len(memory.y)
        order = torch.randperm(count, generator=torch_generator(*draw))
        total = 0.0
        for step, chosen in enumerate(_batches(order, max(self.batch_size, least), least)):
            chosen = chosen.to(memory.z.device)
            error = squared_error(
                aux,
                AlignmentSamples(z=memory.z[chosen], y=memory.y[chosen], targets=memory.targets[chosen]),
                (*draw, step),
            )
            total += error.item()
            if not total < float("inf"):
                if step == 0 and draw[-1] == 0:  # of the first epoch
                    raise WireError(f"alignment with its samples: squared error {total} before anything was learnt")
                raise Diverged(
                    f"alignment of an auxiliary network: squared error {total}; lower server.alignment.optimizer.lr"
                )
            aux.backward(error)
            aux.step()
        return total / count


def _batches(order: Tensor, size: int, least: int) -> list[Tensor]:
    """A last one of fewer than `least` joins the one before."""
    batches = list(torch.split(order, size))
    if len(batches) > 1 and len(batches[-1]) < least:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def squared_error(aux: Segment, memory: AlignmentSamples, draw: Draw) -> Tensor:
    """Σ over samples of ‖estimated − target cut gradient‖², with the graph that aux's own gradient needs."""
    z = memory.z.detach().requires_grad_()
    logits = aux.forward(z, draw, keep_buffers=True)
    loss = F.cross_entropy(logits, memory.y, reduction="sum")
    estimate = aux.gradient(loss, z, differentiable=True)
    return (estimate - memory.targets).square().sum()
