"""Alignment: an auxiliary network learns to give the cut gradients that the head would give.

Source: FSL-SAGE, Nair et al., ICML 2025. Minimise over aux the mean over stored samples of ‖d CE(aux(z), y)/dz − d
CE(head(z), y)/dz‖². The estimate is itself a gradient, so this takes double backprop. Deviation: all gradients here
are of a sample's own loss (sums over samples, not means). The authors' code compares means over batches of different
sizes, which is the same only if those sizes are equal. The user of an estimate divides it by the size of its own
batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
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
    """The server's way to align a client's auxiliary network.

    `eps`: in the authors' code the loss is made of means over N stored samples, so its gradients are N² times smaller
    than ours, and Adam's eps acts on those. With `scaled` the optimiser's eps is multiplied by N² (1e-8 becomes 0.01
    for N = 1000), which takes the same steps as theirs while N stays the same; with `plain` it is used as it is.
    `schedule` applies to the alignment's learning rate over the rounds; the head's own schedule does not count.

    `targets`: `refreshed` computes them from the present head, as the authors do; `stored` uses those of the step on
    each sample, as the paper's sum is written. `head_buffers`: a refresh uses the statistics of all stored samples and
    leaves BatchNorm's own as they are (`kept`), or updates them (`updated`), as the authors' code does.
    """

    epochs: PositiveInt = Field(100, description="Epochs over the stored samples in one alignment.")
    batch_size: PositiveInt = Field(1000, description="Stored samples in one batch of an alignment.")
    optimizer: Optimizer = Field(Adam(lr=1e-3), description="Optimiser of the auxiliary networks.")
    schedule: Schedule = Field(
        Constant(), description="Learning rate of the alignment over the rounds, relative to the base rate."
    )
    eps: Literal["scaled", "plain"] = Field(
        "scaled",
        description="Adam's eps times the square of the number of samples, as in the authors' code, or as it is.",
    )
    targets: Literal["refreshed", "stored"] = Field(
        "refreshed", description="Target gradients of the head as it is now, or those of the step on each sample."
    )
    head_buffers: Literal["kept", "updated"] = Field(
        "kept", description="BatchNorm's statistics of the head are kept, or updated, when targets are refreshed."
    )

    def refresh(self, head: Segment, z: Tensor, y: Tensor, draw: Draw) -> Tensor:
        """Return d(own loss of each sample)/dz (N, *cut) of the present head; takes no step."""
        z = z.detach().to(head.device).requires_grad_()
        logits = head.forward(z, draw, keep_buffers=self.head_buffers == "kept")
        return head.gradient(F.cross_entropy(logits, y.to(head.device), reduction="sum"), z)

    def lr(self, round: int, rounds: int) -> float:
        """Return the learning rate of a round."""
        return self.optimizer.lr * self.schedule.factor(round, rounds)

    def run(self, aux: Segment, memory: AlignmentSamples, draw: Draw) -> tuple[float, float]:
        """Train aux, and return the mean squared error per sample over the first epoch and over the last.

        Leaves aux's buffers as they are. Raise WireError if the first error is not finite, before anything was learnt:
        the samples are to blame. Raise Diverged if a later one is not finite, ValueError if nothing is stored.
        """
        if not len(memory.y):
            raise ValueError("alignment with an empty memory")
        least = self._least(aux, memory)
        with self._scaled(aux, len(memory.y)):
            errors = [self._epoch(aux, memory, (*draw, epoch), least) for epoch in range(self.epochs)]
        return errors[0], errors[-1]

    @contextmanager
    def _scaled(self, aux: Segment, samples: int) -> Iterator[None]:
        """Multiply Adam's eps by the square of the number of samples inside the context.

        Afterwards it is the configuration's again, as snapshots expect.
        """
        if not isinstance(self.optimizer, Adam) or self.eps == "plain":
            yield
            return
        aux.set_eps(self.optimizer.eps * samples**2)
        try:
            yield
        finally:
            aux.set_eps(self.optimizer.eps)

    def _least(self, aux: Segment, memory: AlignmentSamples) -> int:
        """Return the least size of a batch: two if a single sample would be left over and aux cannot train on one."""
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
                if step == 0 and draw[-1] == 0:  # the first step of the first epoch
                    raise WireError(f"alignment with its samples: squared error {total} before anything was learnt")
                raise Diverged(
                    f"alignment of an auxiliary network: squared error {total}; lower server.alignment.optimizer.lr"
                )
            aux.backward(error)
            aux.step()
        return total / count


def _batches(order: Tensor, size: int, least: int) -> list[Tensor]:
    """Split the order into batches; a last one of fewer than `least` joins the batch before it."""
    batches = list(torch.split(order, size))
    if len(batches) > 1 and len(batches[-1]) < least:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def squared_error(aux: Segment, memory: AlignmentSamples, draw: Draw) -> Tensor:
    """Return Σ over samples of ‖estimated − target cut gradient‖², with the graph that aux's own gradient needs."""
    z = memory.z.detach().requires_grad_()
    logits = aux.forward(z, draw, keep_buffers=True)
    loss = F.cross_entropy(logits, memory.y, reduction="sum")
    estimate = aux.gradient(loss, z, differentiable=True)
    return (estimate - memory.targets).square().sum()
