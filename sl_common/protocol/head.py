"""The head's step: one forward and one backward pass over a cohort's concatenated samples.

The loss is the mean over all samples of the cohort; the gradients for the clients are computed before the head's step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from sl_common.errors import Diverged
from sl_common.messages.training import Gradient, Smashed
from sl_common.protocol.at import At
from sl_common.protocol.mix import Arrived, Mix, Part, Unmixed
from sl_common.protocol.scatter import Own, Scatter
from sl_common.seeds import Draw
from sl_common.tensors import is_within
from sl_common.training.bank import Bank
from sl_common.training.segment import Segment
from sl_common.value import Value

# Beyond these limits no step is taken and no gradient is sent. Networks that learn stay far below them, and the weights
# that such a step would leave on either side, finite or not, would be blamed on the next client.
LARGE_LOSS = 1e6  # mean over samples
LARGE_GRADIENT = 1e6  # absolute value of one number of a cut gradient


class Head(Value):
    """The server's step.

    `cut_grad_scale`: with `own_mean` a client's gradient is that of the mean loss over its own batch, dzᵢ·Σ|B|/|Bᵢ|
    (in that order); with `global_mean` that of the mean over the cohort. `own_mean` is SGLR's Eq. 5; its Section 3
    and its authors' code use `global_mean`. Under SGD the two differ by a factor C, the number of clients, in the
    clients' step.

    `weights`: all samples of the cohort count alike in the loss (a client then weighs |Bᵢ|/Σ|B|), or each client counts
    by its |Dᵢ|. `loss`: `softmax_bce` is the mean over samples and classes of the binary cross-entropy of the softmax's
    probabilities, as in SGLR's code; a mix has a loss of its own. `lr_power`: the head's learning rate is multiplied by
    C^lr_power, C = clients in the wave.
    """

    copies: Literal["shared", "per_client"] = Field(
        "shared", description="One head for all clients, or a copy for each."
    )
    mix: Mix = Field(Unmixed(), description="Mixing of different clients' samples in the head.")
    scatter: Scatter = Field(Own(), description="Which gradient each client gets back.")
    cut_grad_scale: Literal["own_mean", "global_mean"] = Field(
        "own_mean",
        description="Scale of the cut gradients: mean loss of the client's own batch, or of the whole cohort.",
    )
    weights: Literal["batch", "data"] = Field(
        "batch", description="Weight of a client in the cohort's loss: the size of its batch, or of its data."
    )
    loss: Literal["cross_entropy", "softmax_bce"] = Field(
        "cross_entropy",
        description="Loss: cross-entropy, or the binary cross-entropy of the softmax probabilities.",
    )
    lr_power: float = Field(
        0.0,
        ge=0,
        le=4,
        description="The head's learning rate is multiplied by the number of clients in the wave to this power.",
    )

    def lr_factor(self, wave_size: int) -> float:
        """Return the factor of the head's base rate."""
        return float(wave_size**self.lr_power)

    def step(self, bank: Bank, cohort: Sequence[Arrived], at: At) -> dict[int, Gradient]:
        """Train on a cohort (sorted by shard) and return one reply for each client.

        Raise Diverged, with nothing changed, if a loss or a gradient is not finite or above the limits. A cohort that
        is not for training (a gradient probe) leaves weights, optimiser and buffers as they were.
        """
        head = bank.get("head", cohort[0].client)
        return self._step(head, cohort, at, train=cohort[0].batch.train)

    def trial(self, bank: Bank, cohort: Sequence[Arrived], at: At) -> bool:
        """Return True if a step on this cohort could be taken; changes nothing."""
        head = bank.get("head", cohort[0].client)
        try:
            self._step(head, cohort, at, train=False)
        except Diverged:
            return False
        finally:
            head.clear()
        return True

    def _step(self, head: Segment, cohort: Sequence[Arrived], at: At, *, train: bool) -> dict[int, Gradient]:
        back = head.buffers()
        try:
            replies = self._replies(head, cohort, at, train=train)
        except Diverged:
            back()
            raise
        if train:
            head.defer_step()
        return replies

    def _replies(self, head: Segment, cohort: Sequence[Arrived], at: At, *, train: bool) -> dict[int, Gradient]:
        """Run the forward and backward pass, and return the replies.

        Raise Diverged if a number is too large; BatchNorm has seen the cohort then, and the caller restores it.
        """
        z = _join([a.batch.z for a in cohort], head).requires_grad_(any(a.batch.needs_grad for a in cohort))
        y = _join([a.batch.y for a in cohort], head)
        logits = head.forward(z, _draw(cohort, at), keep_buffers=not train)
        loss = self._loss(logits, y, cohort)
        extra = self.mix.extra_loss(head, self._shares(z, y, cohort), at)
        total = loss if extra is None else loss + extra
        value = total.item()
        losses = [value if extra is None else loss.item()] if len(cohort) == 1 else self._losses(logits, y, cohort)
        for found in (value, *losses):
            if not found <= LARGE_LOSS:  # NaN fails the comparison
                raise Diverged(f"the head's loss is {found} in {_where(at)}: lower the learning rates")
        head.backward(total, awaited=z if z.requires_grad else None)
        gradients = self._gradients(z.grad, cohort, at) if z.grad is not None else {}
        for dz in () if z.grad is None else (z.grad, *self._made(gradients)):
            if not is_within(dz, LARGE_GRADIENT):
                largest = dz.abs().max().item()
                found = f"{largest:.4g}" if math.isfinite(largest) else "NaN or Inf"
                raise Diverged(f"the head's cut gradient holds {found} in {_where(at)}: lower the learning rates")
        return {
            a.client: Gradient(step=a.batch.step, loss=own_loss, dz=gradients.get(a.client))
            for a, own_loss in zip(cohort, losses, strict=True)
        }

    def evaluate(self, bank: Bank, client: int, batch: Smashed) -> Gradient:
        """Return loss and number of correct answers of one batch in evaluation mode; changes nothing.

        A loss above LARGE_LOSS, or NaN, counts as LARGE_LOSS.
        """
        head = bank.get("head", client)
        logits = head.forward(batch.z, train=False, grad=False)
        y = batch.y.to(head.device)
        correct = int((logits.argmax(dim=1) == y).sum())
        loss = F.cross_entropy(logits, y).item()
        return Gradient(step=batch.step, loss=loss if loss <= LARGE_LOSS else LARGE_LOSS, correct=correct)

    def _shares(self, z: Tensor, y: Tensor, cohort: Sequence[Arrived]) -> Iterator[Part]:
        """Yield each client's share of the cohort, made on demand since most heads do not mix."""
        counts = [len(a.batch.y) if self.weights == "batch" else a.samples for a in cohort]
        for a, (own, labels), count in zip(cohort, _parts(z, y, cohort), counts, strict=True):
            yield Part(client=a.client, z=own, y=labels, weight=count / sum(counts))

    def _loss(self, logits: Tensor, y: Tensor, cohort: Sequence[Arrived]) -> Tensor:
        if self.weights == "batch" or len(cohort) == 1:
            return self._mean(logits, y)
        total = sum(a.samples for a in cohort)
        means = [self._mean(part, labels) for part, labels in _parts(logits, y, cohort)]
        return torch.stack([m * (a.samples / total) for m, a in zip(means, cohort, strict=True)]).sum()

    def _mean(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return the loss, a mean over samples."""
        if self.loss == "cross_entropy":
            return F.cross_entropy(logits, y)
        likely = torch.softmax(logits, dim=1)
        return F.binary_cross_entropy(likely, F.one_hot(y, logits.shape[1]).to(likely.dtype))

    def _losses(self, logits: Tensor, y: Tensor, cohort: Sequence[Arrived]) -> list[float]:
        """Return each client's own mean loss.

        One call computes all if the batches have one size, as in most cohorts.
        """
        sizes = {len(a.batch.y) for a in cohort}
        with torch.no_grad():
            if len(sizes) > 1 or self.loss != "cross_entropy":
                return [self._mean(part, labels).item() for part, labels in _parts(logits, y, cohort)]
            own: list[float] = F.cross_entropy(logits, y, reduction="none").view(len(cohort), -1).mean(dim=1).tolist()
            return own

    def _made(self, gradients: Mapping[int, Tensor]) -> Iterable[Tensor]:
        """Return the gradients that are not slices of the cut gradient; the slices are checked with it as a whole."""
        return () if isinstance(self.scatter, Own) else gradients.values()

    def _gradients(self, dz: Tensor, cohort: Sequence[Arrived], at: At) -> Mapping[int, Tensor]:
        slices = dict(zip([a.client for a in cohort], self._pieces(dz, cohort), strict=True))
        wanted = {a.client for a in cohort if a.batch.needs_grad}
        scattered = self.scatter.scatter(slices, at, self._divisors(cohort))
        return {c: g.to("cpu") for c, g in scattered.items() if c in wanted}

    def _divisors(self, cohort: Sequence[Arrived]) -> Mapping[int, float] | None:
        """Return the divisor of the gradients in each client's part, relative to those of a sample's own loss.

        Known up to one common factor; None if it is the same for all clients.
        """
        if self.cut_grad_scale == "own_mean":
            return {a.client: float(len(a.batch.y)) for a in cohort}
        return None if self.weights == "batch" else {a.client: len(a.batch.y) / a.samples for a in cohort}

    def _pieces(self, dz: Tensor, cohort: Sequence[Arrived]) -> Sequence[Tensor]:
        """Return each client's part of dz in its own scale, in dz's memory.

        Neighbours with equal counts are scaled by one operation, which gives the same bits.
        """
        if len(cohort) == 1:
            return (dz,)
        sizes = [len(a.batch.y) for a in cohort]
        if self.cut_grad_scale == "global_mean":
            return torch.split(dz, sizes)
        counts = sizes if self.weights == "batch" else [a.samples for a in cohort]
        total = sum(counts)
        alike = [
            (count, [size for _, size in run]) for count, run in groupby(zip(counts, sizes, strict=True), itemgetter(0))
        ]
        runs = torch.split(dz, [sum(run_sizes) for _, run_sizes in alike])
        scaled = (_times(run, total, count) for run, (count, _) in zip(runs, alike, strict=True))
        return [part for run, (_, run_sizes) in zip(scaled, alike, strict=True) for part in torch.split(run, run_sizes)]


def _where(at: At) -> str:
    return f"round {at.round + 1}, cohort {at.step}"


def _join(tensors: Sequence[Tensor], head: Segment) -> Tensor:
    """(B₁, …), (B₂, …) -> (ΣB, …) on the head's device, detached; a single tensor is not copied."""
    moved = [t.to(head.device, non_blocking=True) for t in tensors]
    return moved[0].detach() if len(moved) == 1 else torch.cat(moved)


def _times(x: Tensor, total: int, count: int) -> Tensor:
    """Multiply x by total/count in place, in that order, and return it.

    If `count` is a power of two that divides `total`, one factor gives the same bits.
    """
    if count & (count - 1) == 0 and total % count == 0:
        return x.mul_(total // count)
    return x.mul_(total).div_(count)


def _draw(cohort: Sequence[Arrived], at: At) -> Draw:
    """Return the name of the cohort's draw; it does not depend on the order of arrival."""
    members = [n for a in sorted(cohort, key=lambda a: a.client) for n in (a.client, a.batch.step)]
    return (at.seed, "head", at.round, *members)


def _parts(logits: Tensor, y: Tensor, cohort: Sequence[Arrived]) -> list[tuple[Tensor, Tensor]]:
    sizes = [len(a.batch.y) for a in cohort]
    return list(zip(torch.split(logits, sizes), torch.split(y, sizes), strict=True))
