"""How far this client has come in its wave, and whom it waits for: what a bar draws, and a line every few seconds where there is none."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from sl_common.batch import Batch
from sl_common.client.seat import Batches, Seat
from sl_common.config.known_data import KNOWN_DATA
from sl_common.host.progress import Rate, duration, rate, size
from sl_common.messages.training import Begin, Gradient


class Counted:
    """A client's data, with a call when a batch is done. The samples of whoever is asked for the next one are."""

    def __init__(self, data: Batches, done: Callable[[int], object]) -> None:
        self._data, self._done = data, done

    @property
    def samples(self) -> int:
        """Training samples."""
        return self._data.samples

    @property
    def batches(self) -> int:
        """Training batches in one epoch."""
        return self._data.batches

    def train(self, first: int, steps: int) -> Iterator[Batch]:
        """Batches `first` to `first + steps`."""
        return self._counted(self._data.train(first, steps))

    def evaluate(self, part: int, parts: int, samples: int) -> Iterator[Batch]:
        """One slice of the test set."""
        return self._counted(self._data.evaluate(part, parts, samples))

    def _counted(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            yield batch
            self._done(len(batch.y))


class WaveProgress:
    """Told by the runner's thread, asked by others."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._rate = clock, Rate(clock)
        self.up = self.down = 0  # bytes on the wire
        self.begun: Begin | None = None  # the wave under way
        self.batches = self.samples = 0  # done in it
        self.expected: int | None = None  # samples of it
        self._round: Begin | None = None  # the last wave
        self._asked = 0  # batches without an answer
        self._seat: Seat | None = None
        self._server: str | None = ""  # looked for, if it is not there; "" before the first look
        self._losses: list[float] = [0.0, 0.0]  # sum, count
        self._since = clock()

    def looking(self, server: str) -> None:
        """There is no server, or it is lost."""
        self._server = server

    def seated(self, seat: Seat) -> None:
        """This client has a place."""
        self._server, self._seat, self.begun, self._round = None, seat, None, None

    def begin(self, begin: Begin) -> None:
        """A wave begins."""
        self.begun = self._round = begin
        self.batches = self.samples = self._asked = 0
        self._losses = [0.0, 0.0]
        self._since = self._clock()
        self.expected = self._expected(begin)

    def _expected(self, begin: Begin) -> int | None:
        seat = self._seat
        if seat is None:
            return None
        if not begin.evaluate:
            return round(begin.steps * seat.data.samples / seat.data.batches) if seat.data.batches else None
        known = KNOWN_DATA.get(seat.config.data.name)
        if known is None or not begin.slices:
            return None
        whole = min(known.test, begin.samples or known.test)
        return whole * (begin.slice + 1) // begin.slices - whole * begin.slice // begin.slices

    def batch(self, samples: int) -> None:
        """A batch is done."""
        self.batches, self.samples = self.batches + 1, self.samples + samples

    def asked(self) -> None:
        """A batch went out, to be answered."""
        self._server, self._asked = None, self._asked + 1

    def answered(self, reply: Gradient) -> None:
        """An answer came."""
        self._server, self._asked = None, max(0, self._asked - 1)
        self._losses = [self._losses[0] + reply.loss, self._losses[1] + 1]

    def done(self) -> None:
        """The wave is over for this client."""
        self.begun = None

    @property
    def loss(self) -> float | None:
        """Mean of the answers in this wave."""
        total, count = self._losses
        return total / count if count else None

    def waiting_for(self) -> str | None:
        """Whom: the server, the run (to begin), the other clients; None while this one computes."""
        if self._server is not None:
            return "server"
        if self.begun is not None:
            return "server" if self._asked else None
        return "clients" if self._round is not None else "run"

    def left_s(self) -> float | None:
        """Seconds that the rest of this wave takes at its speed so far."""
        expected, done = self.expected, self.samples
        if self.begun is None or not expected or not done:
            return None
        return max(0, expected - done) * (self._clock() - self._since) / done

    def wire(self) -> str:
        """Bytes both ways, and in a second."""
        both = self.up + self.down
        return f"{size(both)} {rate(self._rate.at(both))}"

    def line(self) -> tuple[str, dict[str, Any]]:
        """A line of text and its fields."""
        per_s, left, begun, now = self._rate.at(self.up + self.down), self.left_s(), self._round, self.begun
        fields: dict[str, Any] = {
            "state": "waiting" if now is None else "evaluating" if now.evaluate else "training",
            "round": None if begun is None else begun.round + 1,
            "rounds": None if begun is None else begun.rounds,
            "wave": None if begun is None else begun.wave + 1,
            "samples": self.samples,
            "samples_expected": self.expected,
            "waiting_for": self.waiting_for(),
            "loss": self.loss,
            "bytes_up": self.up,
            "bytes_down": self.down,
            "bytes_per_s": round(per_s),
            "eta_s": None if left is None else round(left, 1),
        }
        ends = "" if left is None else f"; {duration(left)} left of this wave"
        text = f"{self._words()}, {size(self.up)} up, {size(self.down)} down so far, {rate(per_s)}{ends}"
        return text, fields

    def _words(self) -> str:
        waits = {
            "server": f"waiting for the server {self._server}".rstrip()
            if self._server is not None
            else "the server has a batch of it",
            "run": "waiting for the run to begin: for other clients",
            "clients": "waiting for the server and the other clients",
            None: "computing",
        }[self.waiting_for()]
        last, loss = self._round, self.loss
        if last is None:
            return waits
        what = "evaluated" if last.evaluate else "trained"
        of = "" if self.expected is None else f" of {self.expected:,}"
        told = "" if loss is None or last.evaluate else f", loss {loss:.4f}"
        return f"round {last.round + 1}/{last.rounds}: {what} {self.samples:,}{of} samples{told}, {waits}"
