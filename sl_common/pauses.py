"""Time in which a process could have noticed something. Pure; the clock's readings are arguments, in seconds.

A process that was stopped, or whose machine was, or that computed for long, heard nobody meanwhile: that nobody was heard is no one's
fault then. Deadlines by this time move with such gaps.
"""

from __future__ import annotations

LONGEST_LOOK_S = 1.0  # between two looks at a clock that are no gap; whoever keeps deadlines looks more often


class PauseClock:
    """Seconds since it was made, of which no more than `longest_s` pass between two looks."""

    def __init__(self, now: float, longest_s: float = LONGEST_LOOK_S) -> None:
        self._before, self._longest_s = now, longest_s
        self._passed = 0.0

    def read(self, now: float) -> float:
        """So much has passed, if the machine's clock says `now`."""
        self._passed += min(max(0.0, now - self._before), self._longest_s)
        self._before = now
        return self._passed
