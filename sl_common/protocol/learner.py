"""The client's training loop as a generator.

`ticket = yield Smashed(…)` sends a batch; `reply = yield Await(ticket)` waits for its gradient. The loop reads like the
paper and knows no network; work between the two yields overlaps with the wait.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field

from sl_common.batch import Batch
from sl_common.messages.training import Alive, Directive, Gradient, Smashed
from sl_common.models.auxiliary import Auxiliary, Decoder
from sl_common.protocol.exchange import Await, Draws, Exchange, Exchanged, WaveTally
from sl_common.protocol.local_loss import LocalLoss
from sl_common.training.bank import Bank
from sl_common.value import Value


class Split(Value):
    """Vanilla split learning on the client (Gupta & Raskar 2018).

    Forward, send, receive the cut gradient, backward, step.
    """

    kind: Literal["split"] = Field(
        "split", description="Split learning: the client waits for the cut gradient of each batch."
    )
    exchange: ClassVar[Exchanged] = "gradient"
    parts: ClassVar[tuple[str, ...]] = ("lower",)
    sends_all: ClassVar[bool] = True  # every batch crosses the cut, so that the server can count samples

    def sent(self, steps: int) -> Sequence[int]:
        """Return the numbers of the batches of a wave that cross the cut, out of `steps`."""
        return range(steps)

    def train(self, bank: Bank, batches: Iterable[Batch], directive: Directive, draws: Draws) -> Exchange:
        """Train one wave. dz is d(mean loss over this client's batch)/dz with the default `cut_grad_scale`."""
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
        return WaveTally(steps=steps, samples=samples)


class Local(Value):
    """Train the whole network on the client (McMahan et al. 2017); nothing crosses the cut."""

    kind: Literal["local"] = Field("local", description="The client trains the whole network; nothing crosses the cut.")
    exchange: ClassVar[Exchanged] = "nothing"
    parts: ClassVar[tuple[str, ...]] = ("lower", "head")
    sends_all: ClassVar[bool] = False

    def sent(self, steps: int) -> Sequence[int]:  # noqa: ARG002
        """Return no batch: nothing crosses the cut."""
        return range(0)

    def train(self, bank: Bank, batches: Iterable[Batch], directive: Directive, draws: Draws) -> Exchange:
        """Train one wave of ordinary SGD on the mean cross-entropy of each batch."""
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
        return WaveTally(steps=steps, samples=samples, loss_sum=loss_sum)


class SplitWithLocalLoss(Value):
    """Split learning with a local loss as regulariser: dz + mu · d(local loss)/dz.

    Source: LocFedMix-SL, Oh et al., WWW 2022. The local loss, that of `aux`, is computed while the reply is awaited. It
    trains the auxiliary network alone; mu weighs its share in the lower segment's gradient, not in the auxiliary's.
    """

    kind: Literal["split_local"] = Field(
        "split_local", description="Split learning plus a local loss of the client's own."
    )
    exchange: ClassVar[Exchanged] = "gradient"
    aux: Auxiliary = Field(Decoder(), description="Auxiliary network of the local loss.")
    mu: float = Field(1.0, ge=0, description="Weight of the local loss in the lower segment's gradient.")
    parts: ClassVar[tuple[str, ...]] = ("lower", "aux")
    sends_all: ClassVar[bool] = True

    def sent(self, steps: int) -> Sequence[int]:
        """Return the numbers of the batches of a wave that cross the cut, out of `steps`."""
        return range(steps)

    def train(self, bank: Bank, batches: Iterable[Batch], directive: Directive, draws: Draws) -> Exchange:
        """Train one wave."""
        lower, aux = bank.get("lower"), bank.get("aux")
        steps = samples = 0
        for batch in batches:
            frozen = not directive.update
            z = lower.forward(batch.x, draws.of("lower", batch.step), grad=not frozen, keep_buffers=frozen)
            needs_grad = directive.update and z.requires_grad
            ticket = yield Smashed(step=batch.step, z=z.detach(), y=batch.y, needs_grad=needs_grad)
            if needs_grad:
                zd = z.detach().requires_grad_()
                aux.backward(self.aux.loss(aux, zd, batch, draws.of("aux", batch.step)))
                aux.step()
                reply: Gradient = yield Await(ticket)
                assert reply.dz is not None
                assert zd.grad is not None
                dz = reply.dz.to(zd.device)
                lower.backward(z, dz + self.mu * zd.grad if self.mu else dz)
                lower.step()
            steps, samples = steps + 1, samples + len(batch.y)
        return WaveTally(steps=steps, samples=samples)


Learner = Annotated[Split | SplitWithLocalLoss | LocalLoss | Local, Field(discriminator="kind")]
