"""Seconds of each phase of a training step on a client, which are sent to the server with the next batch."""

from __future__ import annotations

import time

from sl_common.wire import Timing


class PhaseTimer:
    """A context manager that adds the time inside it to one phase."""

    __slots__ = ("_phase", "_started", "_watch")

    def __init__(self, watch: Stopwatch, phase: str) -> None:
        self._watch, self._phase, self._started = watch, phase, 0.0

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *_error: object) -> None:
        self._watch.add(self._phase, time.perf_counter() - self._started)


class Stopwatch:
    """Seconds by phase of the step under way. Segments report here through `span`, the runner through `add`."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._step: int | None = None
        self._forward = 0.0

    def span(self, phase: str) -> PhaseTimer:
        """Return a context manager that adds the time inside it to `phase`."""
        return PhaseTimer(self, phase)

    def add(self, phase: str, seconds: float) -> None:
        """Add seconds to a phase."""
        self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds

    def reset(self) -> None:
        """Drop the step under way."""
        self._seconds.clear()
        self._step = None

    def next_step(self, step: int) -> Timing | None:
        """Start to measure `step`, whose batch is about to be sent.

        Return the times of the step before it, if there was one. By now the forward pass of `step` is over, and so is
        the backward pass of the step before.
        """
        s, self._seconds = self._seconds, {}
        before = None
        if self._step is not None:
            before = Timing(
                step=self._step,
                forward=self._forward,
                encode=s.get("encode", 0.0),
                round_trip=s.get("round_trip", 0.0),
                decode=s.get("decode", 0.0),
                backward=s.get("backward", 0.0) + s.get("step", 0.0),
            )
        self._step, self._forward = step, s.get("forward", 0.0)
        return before
