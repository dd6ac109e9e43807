"""Learning from a local loss, with uploads of every batch or of one in each group."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar, Literal, overload

from pydantic import Field, PositiveInt
from torch import Tensor

from sl_common.batch import Batch
from sl_common.messages.training import Aligned, Alive, Directive, Smashed
from sl_common.models.auxiliary import Auxiliary, Classifier
from sl_common.protocol.exchange import AwaitAligned, Draws, Exchange, Exchanged, WaveTally
from sl_common.seeds import Draw
from sl_common.training.bank import Bank
from sl_common.training.segment import Segment
from sl_common.value import Value


@dataclass(frozen=True, slots=True)
class _OneOf(Sequence[int]):
    """The first or the last number of each group of `every`, out of `steps` numbers.

    Takes no memory, whatever number of steps a peer may state.
    """

    steps: int
    every: int
    last: bool
    whole: bool  # only whole groups count

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


class LocalLoss(Value):
    """The client learns from a local loss and waits for no gradient; the head learns from the batches that it sends.

    LocSplitFed (Han et al. 2021) sends every batch. CSE-FSL (arXiv:2302.05599) sends one of every `send_every`: with
    `upload` the `last`, as its authors do, or the `first`. The activation that is sent is that before the client's
    step.

    `partial` decides about a wave's last group if it is smaller than `send_every`: with `skip` it sends nothing (⌊K/h⌋
    uploads of K batches), with `send` its first or last batch (⌈K/h⌉); the client learns from its batches either way.
    By default `skip` if `upload` is `last`, as CSE-FSL's authors do, and `send` if it is `first`, as FSL-SAGE's. With
    `skip` a client with fewer than `send_every` batches in a wave would send nothing; it is refused.

    Without `train_aux` the server trains the auxiliary network, and its loss only estimates the cut gradient (FSL-SAGE,
    arXiv:2505.23182). If the server aligns it, the client waits for it after its first batch of the wave.
    """

    kind: Literal["local_loss"] = Field(
        "local_loss", description="The client learns from a local loss and waits for no gradient."
    )
    exchange: ClassVar[Exchanged] = "activation"
    aux: Auxiliary = Field(Classifier(), description="Auxiliary network of the local loss.")
    send_every: PositiveInt = Field(1, description="Batches in a group of which one is sent.")
    upload: Literal["first", "last"] = Field("last", description="Batch of each group that is sent.")
    partial: Literal["skip", "send"] | None = Field(
        None,
        description="A smaller group at the end of a wave sends nothing, or one batch; by default skip with upload "
        "last, and send with upload first.",
    )
    train_aux: bool = Field(True, description="The client trains the auxiliary network; false: the server does.")
    parts: ClassVar[tuple[str, ...]] = ("lower", "aux")

    @property
    def sends_all(self) -> bool:
        """True if every batch crosses the cut."""
        return self.send_every == 1

    @property
    def skips(self) -> bool:
        """True if a smaller last group sends nothing."""
        return (self.partial or ("skip" if self.upload == "last" else "send")) == "skip"

    def sent(self, steps: int) -> Sequence[int]:
        """Return the numbers of the batches of a wave that cross the cut, out of `steps`."""
        return _OneOf(steps, self.send_every, last=self.upload == "last", whole=self.skips)

    def train(self, bank: Bank, batches: Iterable[Batch], directive: Directive, draws: Draws) -> Exchange:
        """Train one wave; batches that are sent are numbered among themselves."""
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
        """Yield each batch, and True if it is sent.

        Reads as few batches ahead as needed: with `first` and `skip` the rest of a group, otherwise one.
        """
        every, coming = self.send_every, iter(batches)
        ahead = deque(islice(coming, 1))
        place = 0  # position in the group
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
        """Return d(local loss, a mean over the batch)/dz (B, *cut).

        Also takes the auxiliary network's own step if the client trains it.
        """
        keeps = not (self.train_aux or directive.warm)
        loss = self.aux.loss(aux, zd, batch, draw, keep_buffers=keeps)
        if keeps:
            return aux.gradient(loss, zd) if zd.requires_grad else None
        aux.backward(loss)
        aux.step()
        return zd.grad
