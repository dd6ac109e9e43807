"""Every no is counted; it is said once a minute for each reason and peer, so that whoever knocks all day fills no log."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from sl_common.errors import Refused
from sl_common.host.text import printable

MAX_SAID = 100  # different ones in a minute; a peer may think up names
PERIOD_S = 60.0


class Counts(Protocol):
    """Where they are counted."""

    def rejected(self, reason: str) -> None:
        """One more."""
        ...


class Refusals:
    """Those of one server."""

    def __init__(
        self, metrics: Counts, warn: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._metrics = metrics
        self._warn = warn
        self._clock = clock
        self._until = 0.0
        self._said: set[tuple[str, str]] = set()  # in this minute

    def note(self, who: str, error: Refused) -> None:
        """`who` was refused."""
        self._metrics.rejected(error.code)
        now = self._clock()
        if now >= self._until:
            self._said.clear()
            self._until = now + PERIOD_S
        key = (error.code, who)
        if len(self._said) > MAX_SAID or key in self._said:
            return
        self._said.add(key)
        who = printable(who)
        if len(self._said) > MAX_SAID:
            self._warn("too many different refusals to tell them all: for a minute they are only counted")
        else:
            self._warn(f"refused {who} ({error.code}): {printable(error.reason)}")
