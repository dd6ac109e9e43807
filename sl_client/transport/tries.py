"""The pauses between tries to reach a server, and the time after which a client gives up."""

from __future__ import annotations

import time
from collections.abc import Callable

from sl_common.errors import PeerLost
from sl_common.host.backoff import Backoff

FIRST_S = 0.1
TRY_S = (
    25.0  # longer than gRPC tries to connect; a try that takes longer was a pause of this process and does not count
)


class Tries:
    """The tries of one client. A stream that brought nothing counts as a failed try, even if the server greeted it."""

    def __init__(
        self, server: str, retry_s: float, longest_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`retry_s`: seconds without a useful stream until the client gives up; `longest_s`: the longest pause."""
        self._server, self._retry_s, self._clock = server, retry_s, clock
        self._backoff = Backoff(FIRST_S, longest_s)
        self._last_try_at: float | None = None  # None: the last stream was useful
        self._searched_s = 0.0  # since the last useful stream
        self._fruitless = 0

    def begin(self) -> None:
        """Start to count the time, unless it has been counting since the last useful stream."""
        if self._last_try_at is None:
            self._last_try_at, self._searched_s = self._clock(), 0.0

    def failed(self, why: str, longest_s: float | None = None) -> float:
        """Return the seconds to wait before the next try. Raises PeerLost when the time is over."""
        self.begin()
        assert self._last_try_at is not None
        took_s, self._last_try_at = self._clock() - self._last_try_at, self._clock()
        self._searched_s += took_s if took_s <= TRY_S else 0.0
        self._backoff.longest_s = longest_s or self._backoff.longest_s
        if self._searched_s + self._backoff.next_s > self._retry_s:
            raise PeerLost(f"no server at {self._server} for {self._retry_s:g} s; the last try said: {why}")
        return self._backoff.pause_s()

    def fruitless(self, why: str) -> float:
        """Do as `failed` after a stream that was greeted but brought nothing; the first one in a row costs no pause."""
        self._fruitless += 1
        self.begin()
        return self.failed(why) if self._fruitless > 1 else 0.0

    def went_well(self) -> None:
        """Start over, after a stream that was useful."""
        self._last_try_at, self._fruitless = None, 0
        self._backoff.reset()
