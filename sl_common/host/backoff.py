"""Pauses between tries: growing, jittered, bounded."""

from __future__ import annotations

import random


class Backoff:
    """Pauses of one loop that tries again; each is twice the one before, up to the longest."""

    def __init__(self, first_s: float, longest_s: float) -> None:
        self._first_s, self._next_s = first_s, first_s
        self.longest_s = longest_s

    @property
    def next_s(self) -> float:
        """Seconds of the next pause before jitter."""
        return min(self._next_s, self.longest_s)

    def pause_s(self) -> float:
        """Seconds to wait now: between half of `next_s` and all of it, so that many clients do not come at once."""
        pause, self._next_s = self.next_s, 2 * self.next_s
        return pause * random.uniform(0.5, 1.0)  # noqa: S311  (jitter, not a secret)

    def reset(self) -> None:
        """Begin with the first pause again: the last try went well."""
        self._next_s = self._first_s
