"""A client's place in a run: its segments and data, and its work in one wave."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from sl_common.batch import Batch
from sl_common.client.snapshots import Snapshots
from sl_common.config.run_config import RunConfig
from sl_common.errors import DataError, WireError
from sl_common.holdings import Build, DataSet
from sl_common.messages.training import Alive, Begin, Done, Ready, Smashed
from sl_common.protocol import Await, AwaitAligned, Draws, WaveTally
from sl_common.training.bank import Bank
from sl_common.training.segment import Tree

WaveYield = Smashed | Await | AwaitAligned | Alive  # values that a client's program yields within a wave


class Batches(Protocol):
    """Interface of a client's data."""

    @property
    def samples(self) -> int:
        """Number of training samples."""
        ...

    @property
    def batches(self) -> int:
        """Number of training batches in one epoch."""
        ...

    def train(self, first: int, steps: int) -> Iterator[Batch]:
        """Yield batches `first` to `first + steps` (exclusive), counted since the run began."""
        ...

    def evaluate(self, part: int, parts: int, samples: int) -> Iterator[Batch]:
        """Yield the batches of one slice of the test set."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Seat:
    """A client's segments, data and saved state in one run."""

    config: RunConfig
    shard: int
    bank: Bank
    data: Batches
    limit_bytes: int  # bytes of the largest body of a message in this run
    limit_tensors: int  # most tensors of a message in this run
    residuals: dict[str, Tensor] = field(default_factory=dict)  # errors of earlier encodings, of this client's endpoint
    snapshots: Snapshots = field(default_factory=lambda: Snapshots(""))
    data_set: DataSet | None = None
    builds: tuple[Build, ...] = ()

    @property
    def ready(self) -> Ready:
        """The client's message before its first wave."""
        kept = self.snapshots
        return Ready(
            samples=self.data.samples,
            batches=self.data.batches,
            snapshots=kept.numbers,
            intact=kept.last is not None,
            data=self.data_set,
            builds=self.builds,
            torch=str(torch.__version__),
        )

    def snapshot(self) -> Tree:
        """Return the state that this client can continue from."""
        return {"bank": self.bank.snapshot(), "residuals": dict(self.residuals)}

    def final_snapshots(self) -> Snapshots:
        """Return the snapshots that the next session of this client can continue from.

        They hold this session's state, unless it never used the one that it was given.
        """
        if self.snapshots.last is None:
            self.snapshots.last = self.snapshot()
        return self.snapshots

    def _restore(self, tree: Tree) -> None:
        """Restore a state. Raises DataError if it does not fit: it is of another network, or was edited."""
        try:
            self.bank.restore(tree["bank"])
            residuals = {str(name): tensor for name, tensor in tree["residuals"].items() if isinstance(tensor, Tensor)}
        except Exception as error:  # a value of the wrong kind can raise anything
            raise DataError(f"a snapshot of this client (--state) does not fit this run: {error!r:.300}") from error
        self.residuals.clear()
        self.residuals.update(residuals)

    def _apply_checkpoints(self, begin: Begin) -> None:
        """Restore a snapshot if the server went back to a checkpoint, and save the state before this wave."""
        if begin.restore:
            self._restore(self.snapshots.state_at(begin.restore))
        elif begin.intact:
            if self.snapshots.last is None:
                raise WireError("begin says to go on from what was here, but this client has nothing")
            self._restore(self.snapshots.last)
        self.snapshots.last = None
        self.snapshots.drop_after(begin.checkpoint)
        if begin.checkpoint:
            self.snapshots.keep(begin.checkpoint, self.snapshot)

    def wave(self, begin: Begin) -> Generator[WaveYield, Any, Done]:
        """Run one wave, from its weights to its Done."""
        self._apply_checkpoints(begin)
        self.load(begin)
        tally = yield from self._evaluate(begin) if begin.evaluate else self._train(begin)
        self.snapshots.save_after_wave(self.snapshot)  # before the server is told
        return self.done(begin, tally)

    def load(self, begin: Begin) -> None:
        """Load the weights that a wave begins with. Raises WireError if they do not fit this client's parts."""
        for part, state in begin.weights.items():
            self.bank.get(part).load(state, part)

    def done(self, begin: Begin, tally: WaveTally) -> Done:
        """Return the message at the end of a wave."""
        return Done(
            round=begin.round,
            wave=begin.wave,
            steps=tally.steps,
            samples=tally.samples,
            loss_sum=tally.loss_sum,
            weights={part: self.bank.get(part).state() for part in begin.upload},
            digests={} if begin.evaluate else {part: self.bank.get(part).digest() for part in self.bank.parts},
        )

    def _train(self, begin: Begin) -> Generator[WaveYield, Any, WaveTally]:
        client = self.config.client
        for part in self.bank.parts:
            own = client.aux_optimizer if part == "aux" else None
            self.bank.get(part).set_lr(begin.lr if own is None else own.lr * (begin.lr / client.optimizer.lr))
        draws = Draws(seed=self.config.run.seed, round=begin.round, shard=self.shard)
        batches = self.data.train(begin.first, begin.steps) if begin.directive.send else iter(())
        exchange = self.config.protocol.learner.train(self.bank, batches, begin.directive, draws)
        return (yield from _placed(exchange, begin))

    def _evaluate(self, begin: Begin) -> Generator[Smashed, Any, WaveTally]:
        lower = self.bank.get("lower")
        steps = samples = 0
        for batch in self.data.evaluate(begin.slice, begin.slices, begin.samples):
            z = lower.forward(batch.x, train=False, grad=False)
            yield Smashed(
                step=batch.step,
                z=z.to("cpu"),
                y=batch.y,
                round=begin.round,
                wave=begin.wave,
                train=False,
                needs_grad=False,
            )
            steps, samples = steps + 1, samples + len(batch.y)
        return WaveTally(steps=steps, samples=samples)


def _placed(exchange: Generator[WaveYield, Any, WaveTally], begin: Begin) -> Generator[WaveYield, Any, WaveTally]:
    """Add round and wave to the batches of a learner, which knows neither."""
    answer: Any = None
    while True:
        try:
            op = exchange.send(answer)
        except StopIteration as stop:
            tally: WaveTally = stop.value
            return tally
        if isinstance(op, Smashed):
            op = Smashed(
                step=op.step,
                z=op.z.to("cpu"),  # codecs read CPU tensors; no copy if it is one
                y=op.y,
                round=begin.round,
                wave=begin.wave,
                train=op.train,
                needs_grad=op.needs_grad,
            )
        answer = yield op
