"""The client's inner loop as a generator: `ticket = yield Smashed(…)`, then `reply = yield Await(ticket)` where it wants the gradient.

It reads like the paper and knows no network; what happens between the two yields overlaps the wait.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field

from sl_common.batch import Batch
from sl_common.messages import Alive, Directive, Gradient, Smashed
from sl_common.seeds import Draw
from sl_common.segment import Bank
from sl_common.value import Value


@dataclass(frozen=True, slots=True)
class Await:
    """Wait for the reply to the Smashed of this step."""

    ticket: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Tally:
    """What a client's wave came to."""

    steps: int = 0
    samples: int = 0
    loss_sum: float = 0.0  # where the client computed the loss itself


Exchange = Generator[Smashed | Await | Alive, Any, Tally]


@dataclass(frozen=True, kw_only=True, slots=True)
class Draws:
    """What names each forward pass on this client: (run.seed, segment, round, shard, step)."""

    seed: int
    round: int
    shard: int

    def of(self, part: str, step: int) -> Draw:
        """For one pass of one part."""
        return (self.seed, part, self.round, self.shard, step)


class Split(Value):
    """Vanilla split learning on the client (Gupta & Raskar 2018): forward, send, receive the cut gradient, backward, step."""

    kind: Literal["split"] = "split"
    parts: ClassVar[tuple[str, ...]] = ("lower",)

    def train(self, bank: Bank, batches: Iterable[Batch], directive: Directive, draws: Draws) -> Exchange:
        """One wave. dz is d(mean loss over this client's batch)/dz with the default `cut_grad_scale`."""
        lower = bank.get("lower")
        steps = samples = 0
        coming = iter(batches)
        batch = next(coming, None)
        while batch is not None:
            frozen = not directive.update
            z = lower.forward(batch.x, draws.of("lower", batch.step), grad=not frozen, keep_buffers=frozen)
            needs_grad = directive.update and z.requires_grad
            ticket = yield Smashed(step=batch.step, z=z.detach(), y=batch.y, needs_grad=needs_grad)
            following = next(coming, None)  # while the batch is on its way
            if needs_grad:
                lower.clear()
                reply: Gradient = yield Await(ticket)
                lower.backward(z, reply.dz)
                lower.step()
            steps, samples = steps + 1, samples + len(batch.y)
            batch = following
        return Tally(steps=steps, samples=samples)


class Local(Value):
    """Training of the whole network on the client (McMahan et al. 2017); nothing crosses the cut."""

    kind: Literal["local"] = "local"
    parts: ClassVar[tuple[str, ...]] = ("lower", "head")

    def train(self, bank: Bank, batches: Iterable[Batch], directive: Directive, draws: Draws) -> Exchange:
        """One wave of ordinary SGD on the mean cross-entropy of each batch."""
        lower, head = bank.get("lower"), bank.get("head")
        steps = samples = 0
        loss_sum = 0.0
        for batch in batches:
            z = lower.forward(batch.x, draws.of("lower", batch.step))
            zd = z.detach().requires_grad_(z.requires_grad)
            loss = F.cross_entropy(head.forward(zd, draws.of("head", batch.step)), batch.y.to(head.device))
            if directive.update:
                head.backward(loss)
                lower.backward(z, zd.grad)
                head.step()
                lower.step()
            loss_sum += loss.item() * len(batch.y)
            steps, samples = steps + 1, samples + len(batch.y)
            yield Alive(samples=samples)
        return Tally(steps=steps, samples=samples, loss_sum=loss_sum)


Learner = Annotated[Split | Local, Field(discriminator="kind")]
