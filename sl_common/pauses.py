"""Time in which a process could have received something. Pure; the clock's readings are arguments, in seconds.

A process that was stopped, or whose machine was, or that computed for long, heard no peer in that time, and no peer
is to blame for it. Deadlines by this time move with such gaps.
"""

from __future__ import annotations

LONGEST_LOOK_S = 1.0  # between two readings that are not a gap; code that keeps deadlines reads more often


class PauseClock:
    """A clock of seconds since it was made, which counts at most `longest_s` between two readings."""

    def __init__(self, now: float, longest_s: float = LONGEST_LOOK_S) -> None:
        self._before, self._longest_s = now, longest_s
        self._passed = 0.0

    def read(self, now: float) -> float:
        """Return the seconds that count, if the machine's clock says `now`."""
        self._passed += min(max(0.0, now - self._before), self._longest_s)
        self._before = now
        return self._passed
