"""Refusals of clients: each is counted, and logged once a minute for each reason and peer: nobody can fill the log.

Law: a client whose session belonged to an earlier process is refused with `forgotten` and joins anew. That counts as a
refusal only if it has not joined a minute later.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from sl_common.errors import Refused, WireError
from sl_common.host.text import printable
from sl_common.wire import Refusal
from sl_server.transport.streams import Stream

MAX_SAID = 100  # different refusals that are logged in a minute; a peer may invent names
PERIOD_S = 60.0
MAX_FORGOTTEN = 10_000  # clients that may still join anew; further ones are counted at once


class RefusalCounter(Protocol):
    """The metric of refusals."""

    def rejected(self, reason: str) -> None:
        """Count one refusal for this reason."""
        ...


class Refusals:
    """The refusals of one server."""

    def __init__(
        self, metrics: RefusalCounter, warn: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._metrics = metrics
        self._warn = warn
        self._clock = clock
        self._until = 0.0
        self._said: set[tuple[str, str]] = set()  # reasons and peers that were logged in this minute
        # By client, the oldest first: until when it may join anew, the peer, and its refusal.
        self._forgotten: dict[str, tuple[float, str, Refused]] = {}

    def note(self, who: str, error: Refused, client: str = "") -> None:
        """Count and log that `who` was refused; `client` is its name, if it gave one."""
        if error.code == "forgotten" and client and len(self._forgotten) < MAX_FORGOTTEN:
            self._forgotten.setdefault(client, (self._clock() + PERIOD_S, who, error))
        else:
            self._count(who, error)

    def refuse(self, stream: Stream, client: str, why: Refused | WireError) -> None:
        """Send a refusal on a stream, close it and count it; `client` is its name, or empty."""
        error = as_refused(why)
        self.note(f"{repr(client)[:80] if client else 'a client'} at {stream.peer}", error, client)
        stream.send([Refusal(code=error.code, reason=error.reason).to_frame()])
        stream.close()

    def joined(self, client: str) -> None:
        """Record that a client has a session: an earlier `forgotten` is no refusal."""
        self._forgotten.pop(client, None)

    def look(self) -> None:
        """Count clients that were told `forgotten` and did not join anew in time."""
        while self._forgotten:
            client = next(iter(self._forgotten))
            until, who, error = self._forgotten[client]
            if self._clock() < until:
                return
            del self._forgotten[client]
            self._count(who, error)

    def _count(self, who: str, error: Refused) -> None:
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
            self._warn("too many different refusals to log them all: for a minute they are only counted")
        else:
            self._warn(f"refused {who} ({error.code}): {printable(error.reason)}")


def as_refused(error: Refused | WireError) -> Refused:
    """Return the refusal that an error of a peer leads to."""
    return error if isinstance(error, Refused) else Refused("protocol", str(error))
