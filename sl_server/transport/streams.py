"""The contract of one open stream, as the loop that answers it sees it, and of the loop, as its streams see it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, SupportsBytes

from sl_common.wire.outgoing import Outgoing
from sl_server.core.identity import StreamIdentity

FRAME_OVERHEAD = 512  # bytes that a frame in the inbox costs besides its own: a million empty frames are not free
MAX_UNWRITTEN = 64  # frames waiting in an outbox; a bare acknowledgement is not queued behind more


class Stream(Protocol):
    """One open stream. `send` and `close` may be called from the loop's thread and return at once."""

    peer: str  # address of the client, without the port
    posted: int  # bytes that the stream put into the inbox
    taken: int  # bytes that the loop took out of it
    written: int  # frames that were written to gRPC
    held: bool  # reading is paused for now
    outgoing: Outgoing  # frames that were sent and wait to be written

    @property
    def waiting(self) -> int:
        """Number of frames that were sent and not yet written."""
        ...

    @property
    def writing(self) -> bool:
        """True while a frame that was sent is not yet written."""
        ...

    def send(self, frames: Sequence[SupportsBytes]) -> None:
        """Write these frames, in order."""
        ...

    def close(self) -> None:
        """End the stream after the frames that were sent."""
        ...


class StreamHandler(Protocol):
    """The part of a loop that takes the events of its streams. All methods are called in the loop's thread."""

    def open(self, stream: Stream, hello: bytes, identity: StreamIdentity) -> None:
        """Take a new stream with its first frame; `identity` is what its transport proves."""
        ...

    def feed(self, stream: Stream, frame: bytes, arrived: float) -> None:
        """Take a later frame; `arrived` is the time of `time.perf_counter` at which it was put into the inbox."""
        ...

    def check_identity(self, stream: Stream, identity: StreamIdentity) -> None:
        """Check a stream again after what its transport proves has changed."""
        ...

    def lose(self, stream: Stream) -> None:
        """Forget a stream that has ended."""
        ...
