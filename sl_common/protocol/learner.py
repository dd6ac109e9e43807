"""The client's inner loop as a generator: `ticket = yield Smashed(…)`, then `reply = yield Await(ticket)` where it wants the gradient.

It reads like the paper and knows no network; what happens between the two yields overlaps the wait.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any, ClassVar, Literal, overload

import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor

from sl_common.batch import Batch
from sl_common.messages.training import Aligned, Alive, Directive, Gradient, Smashed
from sl_common.models.auxiliary import Auxiliary, Classifier, Decoder
from sl_common.seeds import Draw
from sl_common.training.segment import Bank, Segment
from sl_common.value import Value


@dataclass(frozen=True, slots=True)
class Await:
    """Wait for the reply to the Smashed of this step."""

    ticket: int


@dataclass(frozen=True, slots=True)
class AwaitAligned:
    """Wait for the auxiliary network that the server aligns in this wave."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WaveTally:
    """What a client's wave came to."""

    steps: int = 0
    samples: int = 0
    loss_sum: float = 0.0  # where the client computed the loss itself


Exchanged = Literal["gradient", "activation", "nothing"]  # what crosses the cut in training: both ways, up alone, none
Exchange = Generator[Smashed | Await | AwaitAligned | Alive, Any, WaveTally]


@dataclass(frozen=True, kw_only=True, slots=True)
class Draws:
    """What names each forward pass on this client: (run.seed, segment, round, shard, step)."""

    seed: int
    round: int
    shard: int

    def of(self, part: str, step: int) -> Draw:
        """For one pass of one part."""
        return (self.seed, part, self.round, self.shard, step)


@dataclass(frozen=True, slots=True)
class _OneOf(Sequence[int]):
    """The first or the last of each group of `every` out of `steps` numbers. Takes no memory, however many there are said to be."""

    steps: int
    every: int
    last: bool
    whole: bool  # of whole groups alone

    def __len__(self) -> int:
        return self.steps // self.every if self.whole else -(-self.steps // self.every)

    @overload
    def __getitem__(self, place: int) -> int: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[int]: ...
    def __getitem__(self, place: int | slice) -> int | Sequence[int]:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        if not 0 <= place < len(self):
            raise IndexError(place)
        return min((place + 1) * self.every - 1, self.steps - 1) if self.last else place * self.every


class Split(Value):
    """Vanilla split learning on the client (Gupta & Raskar 2018): forward, send, receive the cut gradient, backward, step."""

    kind: Literal["split"] = "split"
    exchange: ClassVar[Exchanged] = "gradient"
    parts: ClassVar[tuple[str, ...]] = ("lower",)
    sends_all: ClassVar[bool] = True  # every batch crosses the cut, so that the server can count samples

    def sent(self, steps: int) -> Sequence[int]:
        """Which of the `steps` batches of a wave cross the cut."""
        return range(steps)

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
        return WaveTally(steps=steps, samples=samples)


class Local(Value):
    """Training of the whole network on the client (McMahan et al. 2017); nothing crosses the cut."""

    kind: Literal["local"] = "local"
    exchange: ClassVar[Exchanged] = "nothing"
    parts: ClassVar[tuple[str, ...]] = ("lower", "head")
    sends_all: ClassVar[bool] = False

    def sent(self, steps: int) -> Sequence[int]:  # noqa: ARG002
        """None."""
        return range(0)

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
        return WaveTally(steps=steps, samples=samples, loss_sum=loss_sum)


class SplitWithLocalLoss(Value):
    """Split learning with a regulariser of the client's own (LocFedMix-SL, Oh et al., WWW 2022): dz + mu · d(local loss)/dz.

    The local loss, that of `aux`, is computed while the reply is awaited and trains the auxiliary network alone; mu weighs its share
    in the lower segment's gradient, not in the auxiliary's.
    """

    kind: Literal["split_local"] = "split_local"
    exchange: ClassVar[Exchanged] = "gradient"
    aux: Auxiliary = Decoder()
    mu: Annotated[float, Field(ge=0)] = 1.0
    parts: ClassVar[tuple[str, ...]] = ("lower", "aux")
    sends_all: ClassVar[bool] = True

    def sent(self, steps: int) -> Sequence[int]:
        """Which of the `steps` batches of a wave cross the cut."""
        return range(steps)

    def train(self, bank: Bank, batches: Iterable[Batch], directive: Directive, draws: Draws) -> Exchange:
        """One wave."""
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


class LocalLoss(Value):
    """The client learns from a loss of its own and waits for no gradient; the head learns from what it sends.

    LocSplitFed (Han et al. 2021) sends every batch, CSE-FSL (arXiv:2302.05599) one of every `send_every`: its `upload` `last`, as the
    authors do, or its `first`. What is sent is the activation before the client's step. `partial` says what becomes of a wave's last
    group where it is smaller than `send_every`: with `skip` it sends nothing (⌊K/h⌋ uploads of K batches), with `send` its first or
    last batch (⌈K/h⌉); the client learns from its batches either way. By default `skip` where `upload` is `last`, as CSE-FSL's
    authors do, and `send` where it is `first`, as FSL-SAGE's. With `skip` a client with fewer than `send_every` batches in a wave would
    send nothing; it is refused.

    Without `train_aux` the auxiliary network is the server's to train, and its loss no more than an estimate of the cut gradient
    (FSL-SAGE, arXiv:2505.23182); where the server aligns it, the client waits for it after its first batch of the wave.
    """

    kind: Literal["local_loss"] = "local_loss"
    exchange: ClassVar[Exchanged] = "activation"
    aux: Auxiliary = Classifier()
    send_every: PositiveInt = 1
    upload: Literal["first", "last"] = "last"
    partial: Literal["skip", "send"] | None = None  # by default skip where upload is last, send where it is first
    train_aux: bool = True
    parts: ClassVar[tuple[str, ...]] = ("lower", "aux")

    @property
    def sends_all(self) -> bool:
        """Every batch crosses the cut."""
        return self.send_every == 1

    @property
    def skips(self) -> bool:
        """A last, smaller group sends nothing."""
        return (self.partial or ("skip" if self.upload == "last" else "send")) == "skip"

    def sent(self, steps: int) -> Sequence[int]:
        """Which of the `steps` batches of a wave cross the cut."""
        return _OneOf(steps, self.send_every, last=self.upload == "last", whole=self.skips)

    def train(self, bank: Bank, batches: Iterable[Batch], directive: Directive, draws: Draws) -> Exchange:
        """One wave; batches that are sent are numbered among themselves."""
        lower, aux = bank.get("lower"), bank.get("aux")
        steps = samples = sent = 0
        for batch, is_sent in self._marked(batches):
            frozen = not directive.update
            z = lower.forward(batch.x, draws.of("lower", batch.step), grad=not frozen, keep_buffers=frozen)
            if is_sent:
                yield Smashed(step=sent, z=z.detach(), y=batch.y, needs_grad=False)
                sent += 1
                if directive.align and sent == 1:
                    aligned: Aligned = yield AwaitAligned()
                    aux.load(aligned.weights["aux"], "the aligned auxiliary network")
            if not frozen:
                zd = z.detach().requires_grad_(z.requires_grad)
                lower.backward(z, self._gradient(aux, zd, batch, directive, draws.of("aux", batch.step)))
                lower.step()
            steps, samples = steps + 1, samples + len(batch.y)
            yield Alive(samples=samples)
        return WaveTally(steps=steps, samples=samples)

    def _marked(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, bool]]:
        """Each batch, and whether it is sent. As few are made ahead as tell that: with `first` and `skip` the rest of a group, otherwise one."""
        every, coming = self.send_every, iter(batches)
        ahead = deque(islice(coming, 1))
        place = 0  # in its group
        while ahead:
            needed = max(every, 2) if self.upload == "first" and self.skips and place == 0 else 2
            ahead.extend(islice(coming, max(0, needed - len(ahead))))
            if self.upload == "first":
                is_sent = place == 0 and (len(ahead) >= every or not self.skips)
            else:
                is_sent = place == every - 1 or (len(ahead) == 1 and not self.skips)
            yield ahead.popleft(), is_sent
            place = (place + 1) % every

    def _gradient(self, aux: Segment, zd: Tensor, batch: Batch, directive: Directive, draw: Draw) -> Tensor | None:
        """d(local loss, a mean over the batch)/dz (B, *cut), and the auxiliary network's own step where that is the client's."""
        keeps = not (self.train_aux or directive.warm)
        loss = self.aux.loss(aux, zd, batch, draw, keep_buffers=keeps)
        if keeps:
            return aux.gradient(loss, zd) if zd.requires_grad else None
        aux.backward(loss)
        aux.step()
        return zd.grad


Learner = Annotated[Split | SplitWithLocalLoss | LocalLoss | Local, Field(discriminator="kind")]
