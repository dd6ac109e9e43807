"""A client's whole life as a generator, and the flow that feeds it. It knows no network: a driver carries the messages.

flow = Flow(participate(take_seat))
while True:
    for message in flow.run():      # runs until the client must wait
        send(message)
    if flow.ended:
        break
    flow.deliver(receive())
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from sl_common.batch import Batch
from sl_common.client.orders import Expected, check_aligned, check_begin, check_reply, check_welcome
from sl_common.client.snapshots import Snapshots
from sl_common.config.run_config import RunConfig
from sl_common.errors import DataError, WireError
from sl_common.holdings import Build, DataSet
from sl_common.messages.training import (
    MOST_LATE,
    Aligned,
    Alive,
    Begin,
    Bye,
    Done,
    Gradient,
    Late,
    Ready,
    Smashed,
    ToClient,
    ToServer,
    Welcome,
)
from sl_common.protocol import Await, AwaitAligned, Draws, WaveTally
from sl_common.training.segment import Bank, Tree


@dataclass(frozen=True, slots=True)
class AwaitServer:
    """Wait for the server's next word that is not a reply to a batch."""


class TooLate(Exception):
    """Thrown into a life whose wave went on without it."""


@dataclass(frozen=True, slots=True)
class Window:
    """From now on so many batches may be under way."""

    batches: int


WaveYield = Smashed | Await | AwaitAligned | Alive  # what happens within a wave
ClientProgram = Generator[ToServer | Await | AwaitAligned | AwaitServer | Window, Any, None]


class Batches(Protocol):
    """What a client needs of its data."""

    @property
    def samples(self) -> int:
        """Training samples."""
        ...

    @property
    def batches(self) -> int:
        """Training batches in one epoch."""
        ...

    def train(self, first: int, steps: int) -> Iterator[Batch]:
        """Batches `first` to `first + steps` since the run began."""
        ...

    def evaluate(self, part: int, parts: int, samples: int) -> Iterator[Batch]:
        """One slice of the test set."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Seat:
    """A client's place in a run: its segments and its data."""

    config: RunConfig
    shard: int
    bank: Bank
    data: Batches
    limit_bytes: int  # no message of this run has a larger body
    limit_tensors: int  # nor more tensors
    residuals: dict[str, Tensor] = field(default_factory=dict)  # of this client's endpoint
    snapshots: Snapshots = field(default_factory=lambda: Snapshots(""))
    data_set: DataSet | None = None
    builds: tuple[Build, ...] = ()

    @property
    def ready(self) -> Ready:
        """What the server needs to know before the first wave."""
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
        """Everything that this client goes on from."""
        return {"bank": self.bank.snapshot(), "residuals": dict(self.residuals)}

    def hand_on(self) -> Snapshots:
        """What the next life of this client can go on from; this one's state, unless it never came to use what it was given."""
        if self.snapshots.last is None:
            self.snapshots.last = self.snapshot()
        return self.snapshots

    def _restore(self, tree: Tree) -> None:
        """Raises DataError for a snapshot that does not fit: one of another network, or changed by hand."""
        try:
            self.bank.restore(tree["bank"])
            residuals = {str(name): tensor for name, tensor in tree["residuals"].items() if isinstance(tensor, Tensor)}
        except Exception as error:  # whatever a value of the wrong kind brings about
            raise DataError(f"a snapshot of this client (--state) does not fit this run: {error!r:.300}") from error
        self.residuals.clear()
        self.residuals.update(residuals)

    def _heed_checkpoints(self, begin: Begin) -> None:
        """Go back if the server did, and keep what there is before this wave."""
        if begin.restore:
            self._restore(self.snapshots.back_to(begin.restore))
        elif begin.intact:
            if self.snapshots.last is None:
                raise WireError("begin says to go on from what was here, but this client has nothing")
            self._restore(self.snapshots.last)
        self.snapshots.last = None
        self.snapshots.forget_after(begin.checkpoint)
        if begin.checkpoint:
            self.snapshots.keep(begin.checkpoint, self.snapshot)

    def wave(self, begin: Begin) -> Generator[WaveYield, Any, Done]:
        """One wave, from its weights to its Done."""
        self._heed_checkpoints(begin)
        self.load(begin)
        tally = yield from self._evaluate(begin) if begin.evaluate else self._train(begin)
        self.snapshots.wave_over(self.snapshot)  # before the server hears of it
        return self.done(begin, tally)

    def load(self, begin: Begin) -> None:
        """Take the weights that a wave begins with. Raises WireError if they do not fit this client's parts."""
        for part, state in begin.weights.items():
            self.bank.get(part).load(state, part)

    def done(self, begin: Begin, tally: WaveTally) -> Done:
        """What is said after a wave."""
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
    """A learner does not know in which round it is; its batches do."""
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
                z=op.z.to("cpu"),  # where codecs read it; the same tensor if it is there
                y=op.y,
                round=begin.round,
                wave=begin.wave,
                train=op.train,
                needs_grad=op.needs_grad,
            )
        answer = yield op


def participate(take_seat: Callable[[Welcome], Seat]) -> ClientProgram:
    """Everything a client does, from Welcome until the server says Bye."""
    seat = take_seat(check_welcome((yield AwaitServer())))
    yield Window(seat.config.client.window)
    ready = seat.ready
    yield ready
    while True:
        begin = check_begin((yield AwaitServer()), seat.config, ready, seat.bank.parts)
        try:
            done = yield from seat.wave(begin)
        except TooLate:
            continue
        yield done


class Flow:
    """Runs a life: out come messages until it must wait, in go the server's. One reply for each batch, by its step."""

    def __init__(self, life: ClientProgram) -> None:
        self._life = life
        self._op: ToServer | Await | AwaitAligned | AwaitServer | Window = next(life)
        self._window = 1
        self._words: deque[ToClient] = deque()
        self._under_way: dict[int, Expected] = {}  # step -> what the reply must be
        self._replies: dict[int, Gradient] = {}
        self._aligned: Aligned | None = None
        self._wave: tuple[int, int] | None = None  # round and wave of the last Begin that was begun
        self._late: set[tuple[int, int]] = set()  # waves that the server went on in without us
        self.ended: Bye | None = None

    def run(self) -> Iterator[ToServer]:
        """The messages that the client can send before it must wait."""
        while self.ended is None:
            match self._op:
                case Await(ticket) if ticket in self._replies:
                    self._go_on(self._replies.pop(ticket))
                case AwaitServer() if self._words:
                    word = self._words.popleft()
                    self._go_on(word)
                    if isinstance(word, Begin):
                        self._wave = (word.round, word.wave)
                        self._heed_late()
                case AwaitAligned() if self._aligned is not None:
                    aligned, self._aligned = self._aligned, None
                    self._go_on(aligned)
                case Await() | AwaitAligned() | AwaitServer():
                    return
                case Window(batches):
                    self._window = batches
                    self._go_on(None)
                case Smashed() as batch:
                    if len(self._under_way) >= self._window:
                        return
                    self._under_way[batch.step] = Expected.of(batch)
                    yield batch
                    self._go_on(batch.step)
                case message:
                    yield message
                    self._go_on(None)

    def deliver(self, message: ToClient) -> None:
        """Take one message from the server. Raises WireError if it is not what may come now."""
        match message:
            case Bye():
                self.ended = message
                self._life.close()
            case Gradient(step=step):
                if step not in self._under_way:
                    raise WireError(f"reply to batch {step}, which is not under way ({sorted(self._under_way)} are)")
                batch = self._under_way.pop(step)
                check_reply(message, batch)
                if batch.needs_grad:
                    self._replies[step] = message
            case Aligned(round=r, wave=w, weights=weights):
                if not isinstance(self._op, AwaitAligned) or set(weights) != {"aux"}:
                    raise WireError(
                        f"weights of {sorted(weights)} in round {r + 1}, wave {w + 1}, which this client did not await"
                    )
                check_aligned(message, self._wave)
                self._aligned = message
            case Late(round=r, wave=w):
                self._late.add((r, w))
                self._heed_late()
                self._check_room("late", len(self._late))
            case Welcome() | Begin():
                self._words.append(message)
                self._check_room(type(message).__name__.lower(), len(self._words))
            case _:
                raise WireError(f"{type(message).__name__} is no word of a run's")

    def _check_room(self, what: str, waiting: int) -> None:
        """Raise WireError where the server says more than a client could be behind."""
        if waiting > MOST_LATE:
            raise WireError(f"{what}: {waiting} of them wait to be heeded, at most {MOST_LATE} may")

    def _heed_late(self) -> None:
        """A wave that is under way may be over for this client; if its Done was sent already, that crossed with the server's word."""
        if self._wave not in self._late:
            return
        self._late.clear()
        if not isinstance(self._op, AwaitServer):
            self._op = self._life.throw(TooLate())
        self._under_way.clear()
        self._replies.clear()
        self._aligned = None

    def _go_on(self, answer: Any) -> None:
        self._op = self._life.send(answer)
