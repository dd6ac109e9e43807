"""Progress of a run, computed from its facts: for a bar, or for a line every few seconds where there is no bar."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from sl_common.host.progress import Rate, duration, rate, size
from sl_common.messages.facts import (
    BatchEvaluated,
    ClientDone,
    ClientLate,
    ClientLeft,
    ClientReady,
    Fact,
    RoundEnded,
    RunEnded,
    Trained,
    WaveBegun,
    WentBack,
)
from sl_server.telemetry.ledger import Ledger


class RunProgress:
    """Takes facts in one thread and is read from others. `clients`: number of clients that the run waits for at its
    start."""

    def __init__(self, ledger: Ledger, rounds: int, clients: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._ledger, self.rounds, self._wanted, self._clock = ledger, rounds, clients, clock
        self._rate = Rate(clock)
        self.wave: WaveBegun | None = None
        self._over = False
        self._ready = 0
        self._rounds_here: list[float] = []  # when the first wave of this process began, then when each round ended
        self._last_round = 0  # number of rounds that are over
        self._begin(None)

    def _begin(self, wave: WaveBegun | None) -> None:
        self.wave, self._since = wave, self._clock()
        self._busy = frozenset(wave.clients if wave else ())  # replaced as a whole, because other threads read it
        self.done = self.samples = 0
        self._loss = 0.0

    @property
    def evaluating(self) -> bool:
        """True while the current wave evaluates."""
        return self.wave is not None and self.wave.evaluate

    @property
    def total(self) -> int | None:
        """Work of the current wave: batches, or samples if it evaluates; None if unknown."""
        if self.wave is None:
            return None
        return (self.wave.held_out if self.wave.evaluate else self.wave.steps) or None

    @property
    def loss(self) -> float | None:
        """Mean loss over the batches of this wave so far."""
        done = self.done
        return self._loss / done if done and not self.evaluating else None

    def fact(self, fact: Fact) -> None:
        """Update progress by one fact."""
        match fact:
            case Trained(loss=loss, samples=samples):
                self.done, self.samples, self._loss = self.done + 1, self.samples + samples, self._loss + loss
            case BatchEvaluated(samples=samples):
                self.done, self.samples = self.done + samples, self.samples + samples
            case WaveBegun():
                self._begin(fact)
                self._rounds_here = self._rounds_here or [self._clock()]
            case ClientDone(client=client) | ClientLate(client=client):
                self._busy -= {client}
            case ClientReady():
                self._ready += 1
            case ClientLeft(client=client, was_ready=was_ready):
                self._busy -= {client}
                self._ready -= int(was_ready)
            case WentBack():
                self._begin(None)
                self._ready = 0
            case RoundEnded(round=number):
                self._last_round = number + 1
                self._rounds_here.append(self._clock())
            case RunEnded():
                self._over = True
            case _:
                pass

    def wave_left_s(self) -> float | None:
        """Estimate the seconds left in this wave at its speed so far."""
        total, done = self.total, self.done
        if not total or not done:
            return None
        return max(0, total - done) * (self._clock() - self._since) / done

    def run_left_s(self) -> float | None:
        """Estimate the seconds left in the run, if later rounds take as long as those of this process; None before one
        is over."""
        times = self._rounds_here
        if len(times) < 2:
            return None
        each = (times[-1] - times[0]) / (len(times) - 1)
        left = each * (self.rounds - self._last_round) - (self._clock() - times[-1])
        return max(left, self.wave_left_s() or 0.0, 0.0)

    def left(self) -> str:
        """Return both estimates as text."""
        wave, run = self.wave_left_s(), self.run_left_s()
        parts = [] if wave is None else [f"{duration(wave)} left of this wave"]
        return ", ".join(parts + ([] if run is None else [f"{duration(run)} of the run"]))

    def bytes(self) -> tuple[int, int, float]:
        """Return wire bytes up, down, and both per second."""
        up, down = self._ledger.total("up"), self._ledger.total("down")
        return up, down, self._rate.at(up + down)

    def wire(self) -> str:
        """Return bytes and rate as text."""
        up, down, per_s = self.bytes()
        return f"{size(up + down)} {rate(per_s)}"

    def line(self) -> tuple[str, dict[str, Any]] | None:
        """Return a line of text and its fields; None when the run is over."""
        wave = self.wave
        if self._over:
            return None
        up, down, per_s = self.bytes()
        fields: dict[str, Any] = {"bytes_up": up, "bytes_down": down, "bytes_per_s": round(per_s)}
        if wave is None:
            fields |= {"state": "waiting", "clients": self._ready, "clients_wanted": self._wanted}
            return f"waiting for clients: {self._ready} of {self._wanted} are ready", fields
        run_left = self.run_left_s()
        fields |= self._of_wave(wave) | {"eta_s": None if run_left is None else round(run_left, 1)}
        return f"{self._words(wave)}, {size(up)} up, {size(down)} down so far, {rate(per_s)}{self._with_left()}", fields

    def _with_left(self) -> str:
        return f"; {left}" if (left := self.left()) else ""

    def _of_wave(self, wave: WaveBegun) -> dict[str, Any]:
        left = self.wave_left_s()
        return {
            "state": "evaluating" if wave.evaluate else "training",
            "round": wave.round + 1,
            "rounds": wave.rounds,
            "wave": wave.wave + 1,
            "steps": None if wave.evaluate else self.done,
            "steps_expected": None if wave.evaluate else wave.steps,
            "samples": self.samples,
            "samples_expected": wave.held_out or None if wave.evaluate else None,
            "clients": len(wave.clients),
            "waiting_for": sorted(self._busy)[:10],
            "loss": self.loss,
            "wave_eta_s": None if left is None else round(left, 1),
        }

    def _words(self, wave: WaveBegun) -> str:
        of = f"/{self.total:,}" if self.total else ""
        what = f"evaluated {self.done:,}{of} samples" if wave.evaluate else f"{self.done:,}{of} batches"
        loss = "" if self.loss is None else f", loss {self.loss:.4f}"
        busy = sorted(self._busy)
        names = ", ".join(busy[:3]) + (f" and {len(busy) - 3} more" if len(busy) > 3 else "")
        count = len(wave.clients)
        who = f"{count} client{'' if count == 1 else 's'}" + (f", waiting for {names}" if busy else "")
        return f"round {wave.round + 1}/{wave.rounds}, wave {wave.wave + 1}: {what}{loss}, {who}"
