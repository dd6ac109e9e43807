"""A call of one bidirectional stream, in two ways that behave alike.

The public one hands every message from thread to thread inside grpcio: twice on its way up, once on its way down. Beneath it grpcio has
calls with a completion queue of their own, with which it does unary calls; over such a one the thread that uses the stream drives it
itself, and no step waits for another to wake. Those names are grpcio's own: where one has changed, the public way is taken.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any, Protocol, SupportsBytes

import grpc

from sl_common.wire.outgoing import Outgoing

try:
    from grpc._cython import cygrpc
except ImportError:  # pragma: no cover  (a grpcio that has moved it)
    cygrpc = None

_CODES = {code.value[0]: code for code in grpc.StatusCode}

Metadata = tuple[tuple[str, str], ...]


class ClientCall(Protocol):
    """One thread sends and takes; any thread may cancel."""

    outgoing: Outgoing  # frames that were sent and wait for the transport

    def send(self, frame: SupportsBytes) -> None:
        """Hand a frame to the stream; returns at once. Its bytes are made when its turn comes; after the stream's end it is lost."""
        ...

    def end(self) -> None:
        """No more frames are sent; returns at once."""
        ...

    def __next__(self) -> bytes:
        """The next frame; blocks. Raises StopIteration where the stream ended as it should, or grpc.RpcError with its `code()`."""
        ...

    def cancel(self) -> None:
        """End both directions now, from any thread."""
        ...

    def close(self) -> None:
        """Cancel it and wait for its end."""
        ...


def open_call(channel: grpc.Channel, method: str, metadata: Metadata) -> ClientCall:
    """A new stream of messages that are bytes."""
    try:
        return DirectCall(channel, method, metadata)
    except (AttributeError, TypeError):  # other names, or other arguments
        return ThreadedCall(channel, method, metadata)


class ThreadedCall:
    """The public way: grpcio's threads carry messages in and out."""

    def __init__(self, channel: grpc.Channel, method: str, metadata: Metadata) -> None:
        self._outbox: queue.SimpleQueue[SupportsBytes | None] = queue.SimpleQueue()
        self.outgoing = Outgoing()
        self._call = channel.stream_stream(method)(self._outgoing(), metadata=metadata)

    def _outgoing(self) -> Iterator[bytes]:
        while (frame := self._outbox.get()) is not None:
            self.outgoing.hand(frame)
            yield bytes(frame)

    def send(self, frame: SupportsBytes) -> None:
        """Hand a frame to the stream."""
        self.outgoing.queue(frame)
        self._outbox.put(frame)

    def end(self) -> None:
        """No more frames are sent."""
        self._outbox.put(None)

    def __next__(self) -> bytes:
        """The next frame."""
        frame: bytes = next(self._call)
        return frame

    def cancel(self) -> None:
        """End both directions now."""
        self._outbox.put(None)
        self._call.cancel()

    close = cancel


class CallEnded(grpc.RpcError):  # type: ignore[misc]
    """How a stream ended that did not end well."""

    def __init__(self, operation: Any) -> None:
        self._status = operation
        super().__init__(f"{self.code().name}: {self.details()}")

    def code(self) -> grpc.StatusCode:
        """gRPC's status."""
        return _CODES.get(self._status.code(), grpc.StatusCode.UNKNOWN)

    def details(self) -> str:
        """In words."""
        details = self._status.details()
        return details.decode(errors="replace") if isinstance(details, bytes) else details or ""

    def trailing_metadata(self) -> Any:
        """As the server sent it."""
        return self._status.trailing_metadata()


class DirectCall:
    """The direct way. Whoever holds the turn waits for the call's events: the thread that takes frames, or, while frames lie behind one that
    is still on its way and nobody takes any, a helper."""

    def __init__(self, channel: grpc.Channel, method: str, metadata: Metadata) -> None:
        """Raises AttributeError or TypeError where grpcio's names are others."""
        begin = (
            (cygrpc.SendInitialMetadataOperation(metadata, 0),),
            (cygrpc.ReceiveStatusOnClientOperation(0),),
            (cygrpc.ReceiveInitialMetadataOperation(0),),
        )
        self._send_message, self._send_close = cygrpc.SendMessageOperation, cygrpc.SendCloseFromClientOperation
        self._receive_message, kinds = cygrpc.ReceiveMessageOperation, cygrpc.OperationType
        self._received, self._ended = kinds.receive_message, kinds.receive_status_on_client
        self._sent = (kinds.send_message, kinds.send_close_from_client)
        self._inbox: deque[bytes] = deque()
        self._outbox: deque[SupportsBytes | None] = deque()  # None: no more are sent
        self.outgoing = Outgoing()
        self._status: Any = None  # the operation that has it
        self._receiving = self._sending = False
        self._lock = threading.Lock()  # of what is to be sent
        self._turn = threading.Lock()
        self._wanted = False  # a frame is being taken
        self._behind = threading.Event()
        self._helper: threading.Thread | None = None
        self._call = channel._channel.segregated_call(
            cygrpc.PropagationConstants.GRPC_PROPAGATE_DEFAULTS,
            method.encode(),
            None,  # host
            None,  # deadline
            metadata,
            None,  # credentials of the call alone
            tuple((operations, None) for operations in begin),
            cygrpc.build_census_context(),
            None,  # a registered method
        )
        self._due = len(begin)  # operations whose events have not come

    def send(self, frame: SupportsBytes) -> None:
        """Hand a frame to the stream."""
        self._put(frame)

    def end(self) -> None:
        """No more frames are sent."""
        self._put(None)

    def _put(self, frame: SupportsBytes | None) -> None:
        with self._lock:
            if frame is not None:
                self.outgoing.queue(frame)
            self._outbox.append(frame)
            if not self._sending:
                self._send_next()
                return
        self._help()

    def _send_next(self) -> None:
        """One at a time, as gRPC wants it. The lock is held."""
        if not self._outbox:
            self._sending = False
            return
        frame = self._outbox.popleft()
        if frame is not None:
            self.outgoing.hand(frame)
        operation = self._send_close(0) if frame is None else self._send_message(bytes(frame), 0)
        self._sending = self._start(operation)

    def _start(self, operation: Any) -> bool:
        """False if the call is over."""
        started: bool = self._call.operate((operation,), None)
        self._due += started
        return started

    def _help(self) -> None:
        """Frames are to go out though nobody may be waiting for events."""
        if self._helper is None:
            self._helper = threading.Thread(target=self._push, name="sending", daemon=True)
            self._helper.start()
        self._behind.set()

    def _push(self) -> None:
        while self._status is None:
            self._behind.wait()
            self._behind.clear()
            while self._outbox and not self._wanted and self._status is None:
                with self._turn:
                    if self._sending and self._due:
                        self._wait()

    def _wait(self) -> None:
        """For one event. The turn is held, and something is due."""
        event = self._call.next_event()
        for operation in event.batch_operations:
            kind = operation.type()
            if kind == self._received:
                self._receiving = False
                message = operation.message()
                if message is not None:
                    self._inbox.append(message)
            elif kind in self._sent:
                with self._lock:
                    self._send_next()
            elif kind == self._ended:
                self._status = operation
        with self._lock:
            self._due -= 1

    def __next__(self) -> bytes:
        """The next frame."""
        self._wanted = True
        try:
            with self._turn:
                while not self._inbox:
                    if self._status is not None and not self._receiving:
                        self._raise()
                    if not self._receiving:
                        with self._lock:
                            self._receiving = self._start(self._receive_message(0))
                    if self._due:
                        self._wait()
                return self._inbox.popleft()
        finally:
            self._wanted = False
            if self._outbox:
                self._help()

    def _raise(self) -> None:
        if _CODES.get(self._status.code()) is grpc.StatusCode.OK:
            raise StopIteration
        raise CallEnded(self._status)

    def cancel(self) -> None:
        """End both directions now."""
        self._call.cancel(grpc.StatusCode.CANCELLED.value[0], "we ended it")

    def close(self) -> None:
        """Cancel it and take all its events: its queue lives as long as one is due."""
        self.cancel()
        self._wanted = True  # the helper gives way
        with self._turn:
            while self._due:
                self._wait()
        self._behind.set()  # and ends
