"""How often, how many, how fast: the arithmetic of server.limits. Pure; the time is an argument, in seconds.

A bucket fills with time and is emptied by what it is asked for; who asks an empty one is told how long to wait.
"""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")

MAX_KEYS = 10_000  # buckets that are remembered; who was quiet for long enough has a full one and is forgotten


class Bucket:
    """So much a second, and after a quiet time so much at once."""

    def __init__(self, per_s: float, burst: float, now: float) -> None:
        self._per_s, self._burst = per_s, burst
        self._left, self._at = burst, now

    def take(self, amount: float, now: float) -> float:
        """Seconds until this is within the rate; it counts at once, so that those who come next wait longer."""
        self._fill(now)
        self._left -= amount
        return max(0.0, -self._left / self._per_s)

    def give_back(self, amount: float) -> None:
        """It did not happen after all."""
        self._left += amount

    def full(self, now: float) -> bool:
        """Whether it says no more than a new one."""
        self._fill(now)
        return self._left >= self._burst

    def _fill(self, now: float) -> None:
        self._left = min(self._burst, self._left + (now - self._at) * self._per_s)
        self._at = now


class Buckets:
    """One for each key; a peer may think up keys, so that their number is bounded."""

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s, self._burst = per_s, burst
        self._kept: dict[str, Bucket] = {}

    def wait(self, key: str, at_most: float, now: float) -> float | None:
        """Seconds until one more of this key may come; None, and it does not count, if that is longer than `at_most`."""
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
    """Those who have come and were not admitted yet, by how long they have said nothing."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._silent: dict[T, None] = {}  # the one that has waited longest is the first
        self._asking: set[T] = set()

    def __len__(self) -> int:
        return len(self._silent) + len(self._asking)

    def enter(self, one: T) -> T | None:
        """Who must go to make room: the one that is silent longest, or `one` itself if all others wait for an answer."""
        self._silent[one] = None
        if len(self) <= self._room:
            return None
        out = next(iter(self._silent))
        self.leave(out)
        return out

    def asks(self, one: T) -> None:
        """It has said who it is."""
        if one in self._silent:
            del self._silent[one]
            self._asking.add(one)

    def leave(self, one: T) -> None:
        """It was admitted, or is gone."""
        self._silent.pop(one, None)
        self._asking.discard(one)


class ReadRate:
    """How fast one stream is read: frames and bytes a second, with one second's worth at once."""

    def __init__(self, frames_per_s: float, bytes_per_s: float, now: float) -> None:
        self._frames = Bucket(frames_per_s, frames_per_s, now)
        self._bytes = Bucket(bytes_per_s, bytes_per_s, now)

    def wait(self, nbytes: int, now: float) -> float:
        """Seconds to wait after a frame of so many bytes before the next one is read."""
        return max(self._frames.take(1, now), self._bytes.take(nbytes, now))


class MessageProgress:
    """Whether a message under way comes nearer to its end."""

    def __init__(self, stall_s: float, least_bytes_per_s: float) -> None:
        self._stall_s, self._least = stall_s, stall_s * least_bytes_per_s
        self._since: float | None = None
        self._missing = 0

    def stalled(self, missing: int, now: float) -> bool:
        """`missing` bytes are still to come now; 0 if no message is under way."""
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
        """This time does not count: there was no stream, or we did not read it."""
        if self._since is not None:
            self._since += seconds
