"""A call of one bidirectional stream, and grpcio's public way to make one."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Protocol, SupportsBytes

import grpc

from sl_common.wire.outgoing import Outgoing

Metadata = tuple[tuple[str, str], ...]


class ClientCall(Protocol):
    """A bidirectional stream of frames. One thread sends and receives; any thread may cancel."""

    outgoing: Outgoing  # frames that were queued and wait for gRPC

    def send(self, frame: SupportsBytes) -> None:
        """Queue a frame and return at once; it is serialised when gRPC takes it. After the stream's end it is lost."""
        ...

    def end(self) -> None:
        """Close our side, which sends no more frames, and return at once."""
        ...

    def __next__(self) -> bytes:
        """Wait for the next frame.

        Raises StopIteration when the stream ended well, grpc.RpcError with its `code()` otherwise.
        """
        ...

    def cancel(self) -> None:
        """End both directions now; any thread may do it."""
        ...

    def close(self) -> None:
        """Cancel the call and wait for its end."""
        ...


class ThreadedCall:
    """A ClientCall by grpcio's public API, whose own threads carry the messages."""

    def __init__(self, channel: grpc.Channel, method: str, metadata: Metadata) -> None:
        self._outbox: queue.SimpleQueue[SupportsBytes | None] = queue.SimpleQueue()
        self.outgoing = Outgoing()
        self._call = channel.stream_stream(method)(self._outgoing(), metadata=metadata)

    def _outgoing(self) -> Iterator[bytes]:
        while (frame := self._outbox.get()) is not None:
            self.outgoing.hand(frame)
            yield bytes(frame)

    def send(self, frame: SupportsBytes) -> None:
        """Queue a frame."""
        self.outgoing.queue(frame)
        self._outbox.put(frame)

    def end(self) -> None:
        """Close our side."""
        self._outbox.put(None)

    def __next__(self) -> bytes:
        """Wait for the next frame."""
        frame: bytes = next(self._call)
        return frame

    def cancel(self) -> None:
        """End both directions now."""
        self._outbox.put(None)
        self._call.cancel()

    close = cancel
