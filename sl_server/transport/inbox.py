"""Events on their way from any thread to the one loop that owns a server's state. Training and inference share it.

Law: other threads only enqueue, and nothing here blocks them. The loop takes a bounded number of events before it
works again.
"""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol

from sl_common.errors import Refused
from sl_common.limits import PeerLimits
from sl_server.core.identity import StreamIdentity
from sl_server.transport.refusals import Refusals
from sl_server.transport.streams import FRAME_OVERHEAD, Stream, StreamHandler

_MAX_EVENTS_PER_TURN = 256


class Pauses(Protocol):
    """A counter of seconds."""

    def inc(self, amount: float, /) -> None:
        """Add some."""
        ...


class Inbox:
    """The events of one server."""

    def __init__(self, handler: StreamHandler, limits: PeerLimits, *, refusals: Refusals, pauses: Pauses) -> None:
        """`limits` is what one peer may cost; `pauses` counts the seconds in which streams were not read."""
        self.limits = limits
        self._handler = handler
        self._refusals = refusals
        self._pauses = pauses
        self._events: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.is_empty = self._events.empty
        self.size = self._events.qsize  # number of events that wait
        self._posted = self._taken = 0  # bytes; the event loop counts the first, the loop's thread the second

    # --- from any thread

    def put(self, event: Callable[[], None]) -> None:
        """Have the loop call this in its own thread."""
        self._events.put(event)

    def opened(self, stream: Stream, hello: bytes, identity: StreamIdentity) -> None:
        """Report a stream with its first frame; `identity` is what its transport proves."""
        self._events.put(partial(self._handler.open, stream, hello, identity))

    def received(self, stream: Stream, frame: bytes) -> None:
        """Report a later frame of a stream."""
        nbytes = len(frame) + FRAME_OVERHEAD
        stream.posted += nbytes
        self._posted += nbytes
        self._events.put(partial(self._feed, stream, frame, time.perf_counter()))

    def closed(self, stream: Stream) -> None:
        """Report the end of a stream."""
        self._events.put(partial(self._handler.lose, stream))

    def identity_changed(self, stream: Stream, identity: StreamIdentity) -> None:
        """Report that the transport of an open stream proves something else now."""
        self._events.put(partial(self._handler.check_identity, stream, identity))

    def refused(self, who: str, error: Refused) -> None:
        """Report somebody who was refused before the loop saw the stream."""
        self._events.put(partial(self._refusals.note, who, error))

    def paused(self, seconds: float) -> None:
        """Report that a stream, being too fast, is not read for so long."""
        self._pauses.inc(seconds)

    @property
    def backlog(self) -> int:
        """Bytes of frames that wait."""
        return self._posted - self._taken

    # --- from the loop's thread

    def take(self, wait_s: float | None) -> None:
        """Handle a bounded number of waiting events. If there is none, wait for one: for ever if `wait_s` is None."""
        with contextlib.suppress(queue.Empty):
            self._events.get(timeout=wait_s)()
            for _ in range(_MAX_EVENTS_PER_TURN):
                self._events.get_nowait()()

    def _feed(self, stream: Stream, frame: bytes, arrived: float) -> None:
        nbytes = len(frame) + FRAME_OVERHEAD
        stream.taken += nbytes
        self._taken += nbytes
        self._handler.feed(stream, frame, arrived)
