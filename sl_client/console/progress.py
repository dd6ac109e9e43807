"""The progress of a client in its wave, and the party that it waits for, for a bar or a line every few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from sl_common.batch import Batch
from sl_common.client.seat import Batches, Seat
from sl_common.config.known_data import KNOWN_DATA
from sl_common.host.progress import Rate, duration, rate, size
from sl_common.messages.training import Begin, Gradient


class CountedBatches:
    """A client's data, with a call for each batch that is done: a batch is done when the next one is asked for."""

    def __init__(self, data: Batches, done: Callable[[int], object]) -> None:
        self._data, self._done = data, done

    @property
    def samples(self) -> int:
        """Number of training samples."""
        return self._data.samples

    @property
    def batches(self) -> int:
        """Number of training batches in one epoch."""
        return self._data.batches

    def train(self, first: int, steps: int) -> Iterator[Batch]:
        """Yield training batches number `first` to `first + steps - 1`."""
        return self._counted(self._data.train(first, steps))

    def evaluate(self, part: int, parts: int, samples: int) -> Iterator[Batch]:
        """Yield the batches of one slice of the test set."""
        return self._counted(self._data.evaluate(part, parts, samples))

    def _counted(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            yield batch
            self._done(len(batch.y))


class WaveProgress:
    """The state of a client's wave: the runner's thread updates it, other threads read it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._rate = clock, Rate(clock)
        self.up = self.down = 0  # bytes on the wire
        self.begun: Begin | None = None  # the wave under way
        self.batches = self.samples = 0  # done in this wave
        self.expected: int | None = None  # samples in this wave
        self._round: Begin | None = None  # the last wave
        self._unanswered = 0  # batches
        self._seat: Seat | None = None
        self._server: str | None = ""  # the server that is looked for; "" before the first try, None if it is there
        self._losses: list[float] = [0.0, 0.0]  # sum, count
        self._since = clock()

    def looking(self, server: str) -> None:
        """Record that the server is not there, or is lost."""
        self._server = server

    def seated(self, seat: Seat) -> None:
        """Record this client's seat."""
        self._server, self._seat, self.begun, self._round = None, seat, None, None

    def begin(self, begin: Begin) -> None:
        """Record that a wave begins."""
        self.begun = self._round = begin
        self.batches = self.samples = self._unanswered = 0
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
        """Count a batch that is done."""
        self.batches, self.samples = self.batches + 1, self.samples + samples

    def batch_sent(self) -> None:
        """Count a batch that was sent and needs an answer."""
        self._server, self._unanswered = None, self._unanswered + 1

    def answered(self, reply: Gradient) -> None:
        """Count an answer."""
        self._server, self._unanswered = None, max(0, self._unanswered - 1)
        self._losses = [self._losses[0] + reply.loss, self._losses[1] + 1]

    def done(self) -> None:
        """Record that the wave is over for this client."""
        self.begun = None

    @property
    def loss(self) -> float | None:
        """Mean loss of the answers in this wave."""
        total, count = self._losses
        return total / count if count else None

    def waiting_for(self) -> str | None:
        """Return "server", "run" (which has not begun), or "clients"; None while this client computes."""
        if self._server is not None:
            return "server"
        if self.begun is not None:
            return "server" if self._unanswered else None
        return "clients" if self._round is not None else "run"

    def left_s(self) -> float | None:
        """Return the seconds that the rest of this wave takes at the speed so far, None if that is not known."""
        expected, done = self.expected, self.samples
        if self.begun is None or not expected or not done:
            return None
        return max(0, expected - done) * (self._clock() - self._since) / done

    def wire(self) -> str:
        """Return the bytes of both directions and the rate, as text."""
        both = self.up + self.down
        return f"{size(both)} {rate(self._rate.at(both))}"

    def line(self) -> tuple[str, dict[str, Any]]:
        """Return a line of text and its fields for JSON."""
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
        text = f"{self._describe()}, {size(self.up)} up, {size(self.down)} down so far, {rate(per_s)}{ends}"
        return text, fields

    def _describe(self) -> str:
        waits = {
            "server": f"waiting for the server {self._server}".rstrip()
            if self._server is not None
            else "waiting for the server to answer a batch",
            "run": "waiting for the run to begin: for other clients",
            "clients": "waiting for the server and the other clients",
            None: "computing",
        }[self.waiting_for()]
        last, loss = self._round, self.loss
        if last is None:
            return waits
        what = "evaluated" if last.evaluate else "trained"
        of = "" if self.expected is None else f" of {self.expected:,}"
        mean = "" if loss is None or last.evaluate else f", loss {loss:.4f}"
        return f"round {last.round + 1}/{last.rounds}: {what} {self.samples:,}{of} samples{mean}, {waits}"
