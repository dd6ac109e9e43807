"""Pauses between attempts: growing, random, bounded."""

from __future__ import annotations

import random


class Backoff:
    """Pauses of one retry loop. Each is twice the one before, up to `longest_s`."""

    def __init__(self, first_s: float, longest_s: float) -> None:
        self._first_s, self._next_s = first_s, first_s
        self.longest_s = longest_s

    @property
    def next_s(self) -> float:
        """Length of the next pause in seconds, before jitter."""
        return min(self._next_s, self.longest_s)

    def pause_s(self) -> float:
        """Return the seconds to wait now: 50 to 100 % of `next_s`, so that clients do not all return at once."""
        pause, self._next_s = self.next_s, 2 * self.next_s
        return pause * random.uniform(0.5, 1.0)  # noqa: S311  (jitter, not a secret)

    def reset(self) -> None:
        """Start again with the first pause, after a success."""
        self._next_s = self._first_s
