"""The arithmetic of server.limits: rates, numbers and speeds. Pure; the time is an argument, in seconds.

A bucket fills with time and is emptied by what is taken; taking from an empty one gives how long to wait.
"""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")

MAX_KEYS = 10_000  # buckets that are kept; a full one says no more than a new one, and goes first


class Bucket:
    """A token bucket: `per_s` on average, `burst` at once after a quiet time."""

    def __init__(self, per_s: float, burst: float, now: float) -> None:
        self._per_s, self._burst = per_s, burst
        self._left, self._at = burst, now

    def take(self, amount: float, now: float) -> float:
        """Take an amount now, and return the seconds until that is within the rate; the next caller waits longer."""
        self._fill(now)
        self._left -= amount
        return max(0.0, -self._left / self._per_s)

    def give_back(self, amount: float) -> None:
        """Undo a `take`."""
        self._left += amount

    def full(self, now: float) -> bool:
        """Return True if the bucket is as full as a new one."""
        self._fill(now)
        return self._left >= self._burst

    def _fill(self, now: float) -> None:
        self._left = min(self._burst, self._left + (now - self._at) * self._per_s)
        self._at = now


class Buckets:
    """A bucket for each key, of a bounded number: a peer may invent keys."""

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s, self._burst = per_s, burst
        self._kept: dict[str, Bucket] = {}

    def wait(self, key: str, at_most: float, now: float) -> float | None:
        """Return the seconds until one more of a key may come, which then counts; None if that exceeds `at_most`."""
        if key not in self._kept:
            self._make_room(now)
            self._kept[key] = Bucket(self._per_s, self._burst, now)
        wait = self._kept[key].take(1, now)
        if wait <= at_most:
            return wait
        self._kept[key].give_back(1)
        return None

    def _make_room(self, now: float) -> None:
        if len(self._kept) < MAX_KEYS:
            return
        self._kept = {key: bucket for key, bucket in self._kept.items() if not bucket.full(now)}
        while len(self._kept) >= MAX_KEYS:
            del self._kept[next(iter(self._kept))]  # the oldest


class PendingStreams(Generic[T]):
    """Streams that were not admitted yet, longest silent first."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._silent: dict[T, None] = {}  # in order of arrival
        self._waiting: set[T] = set()

    def __len__(self) -> int:
        return len(self._silent) + len(self._waiting)

    def enter(self, one: T) -> T | None:
        """Add a stream. Return the stream that must make room, if any: the longest silent, which may be `one`."""
        self._silent[one] = None
        if len(self) <= self._room:
            return None
        out = next(iter(self._silent))
        self.leave(out)
        return out

    def spoke(self, one: T) -> None:
        """Record that a stream has sent its Hello and waits for the answer."""
        if one in self._silent:
            del self._silent[one]
            self._waiting.add(one)

    def leave(self, one: T) -> None:
        """Remove a stream that was admitted or has ended."""
        self._silent.pop(one, None)
        self._waiting.discard(one)


class ReadRate:
    """The rate at which one stream is read: frames and bytes a second, with one second's worth at once."""

    def __init__(self, frames_per_s: float, bytes_per_s: float, now: float) -> None:
        self._frames = Bucket(frames_per_s, frames_per_s, now)
        self._bytes = Bucket(bytes_per_s, bytes_per_s, now)

    def wait(self, nbytes: int, now: float) -> float:
        """Return the seconds to wait after a frame of so many bytes before the next one is read."""
        return max(self._frames.take(1, now), self._bytes.take(nbytes, now))


class MessageProgress:
    """The progress of a message under way."""

    def __init__(self, stall_s: float, least_bytes_per_s: float) -> None:
        self._stall_s, self._least = stall_s, stall_s * least_bytes_per_s
        self._since: float | None = None
        self._missing = 0

    def stalled(self, missing: int, now: float) -> bool:
        """Return True if too little came in `stall_s`. `missing`: bytes still to come; 0: no message is under way."""
        if missing == 0:
            self._since = None
        elif self._since is None or missing > self._missing:
            self._since, self._missing = now, missing
        elif now - self._since >= self._stall_s:
            if self._missing - missing < min(self._least, self._missing):
                return True
            self._since, self._missing = now, missing
        return False

    def pause(self, seconds: float) -> None:
        """Leave out a time without a stream, or in which the stream was not read."""
        if self._since is not None:
            self._since += seconds
