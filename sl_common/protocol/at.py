"""The point of the run at which a hook is called: everything it may depend on besides its arguments."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class At:
    """A point of the run; everything is counted from 0."""

    seed: int  # seed of the run
    round: int = 0
    rounds: int = 1
    wave: int = 0
    step: int = 0  # cohorts trained in this wave so far
    wave_size: int = 1  # clients that began this wave
    now: float = 0.0  # seconds since the run began, as of the last Tick
    since: float = 0.0  # time when the last cohort of this wave was trained, or the wave began
