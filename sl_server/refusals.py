"""Every no is counted; it is said once for each reason and peer, so that whoever knocks all day fills no log."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from sl_common.errors import Refused

MAX_SAID = 500  # different ones; a peer may think up names


class Counts(Protocol):
    """Where they are counted."""

    def rejected(self, reason: str) -> None:
        """One more."""
        ...


class Refusals:
    """Those of one server."""

    def __init__(self, metrics: Counts, warn: Callable[[str], None]) -> None:
        self._metrics = metrics
        self._warn = warn
        self._said: set[tuple[str, str]] = set()

    def note(self, who: str, error: Refused) -> None:
        """`who` was refused."""
        self._metrics.rejected(error.code)
        if len(self._said) > MAX_SAID or (error.code, who) in self._said:
            return
        self._said.add((error.code, who))
        if len(self._said) > MAX_SAID:
            self._warn("too many different refusals to tell them all: from now on they are only counted")
        else:
            self._warn(f"refused {who} ({error.code}): {error.reason}")
