"""How often and how long a lost server is looked for, over refused, broken and fruitless streams. The shell's own: it reads the clock."""

from __future__ import annotations

import time
from collections.abc import Callable

from sl_common.errors import PeerLost
from sl_common.host.backoff import Backoff

FIRST_S = 0.1
TRY_S = 25.0  # longer than gRPC looks for a server: what takes longer is a pause of this process, and does not count


class Tries:
    """Of one client. A stream that brought nothing is one more try that failed, though the server greeted it."""

    def __init__(
        self, server: str, retry_s: float, longest_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`retry_s`: without a stream that brought anything; `longest_s`: the longest pause."""
        self._server, self._retry_s, self._clock = server, retry_s, clock
        self._backoff = Backoff(FIRST_S, longest_s)
        self._looked: float | None = None  # None: the last stream was good
        self._passed = 0.0  # seconds in which the server was looked for
        self._fruitless = 0

    def begin(self) -> None:
        """The server is looked for; the time counts from the first look after a stream that was good."""
        if self._looked is None:
            self._looked, self._passed = self._clock(), 0.0

    def failed(self, why: str, longest_s: float | None = None) -> float:
        """Seconds to wait before the next try. Raises PeerLost if there is to be none."""
        self.begin()
        assert self._looked is not None
        took, self._looked = self._clock() - self._looked, self._clock()
        self._passed += took if took <= TRY_S else 0.0
        self._backoff.longest_s = longest_s or self._backoff.longest_s
        if self._passed + self._backoff.next_s > self._retry_s:
            raise PeerLost(f"no server at {self._server} for {self._retry_s:g} s; the last try said: {why}")
        return self._backoff.pause_s()

    def fruitless(self, why: str) -> float:
        """A stream that brought nothing is over: as `failed`, but the first of them costs no pause."""
        self._fruitless += 1
        self.begin()
        return self.failed(why) if self._fruitless > 1 else 0.0

    def went_well(self) -> None:
        """The stream brought something: whatever comes next is new."""
        self._looked, self._fruitless = None, 0
        self._backoff.reset()
