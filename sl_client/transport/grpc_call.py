"""A bidirectional stream by grpcio's private API, which saves a client changes of thread.

The public API is the fallback. The public way (`threaded_call`) hands every message from thread to thread inside
grpcio: twice on its way up, once on its way down. For unary calls grpcio has a private kind of call with a completion
queue of its own. Over such a call the thread that uses the stream also drives it, and no training step waits until
another thread wakes. Only this module uses grpcio's private names. Where one of them has changed, `open_call` takes the
public way, which behaves alike.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any, SupportsBytes

import grpc

from sl_client.transport.threaded_call import ClientCall, Metadata, ThreadedCall
from sl_common.wire.outgoing import Outgoing

try:
    from grpc._cython import cygrpc
except ImportError:  # pragma: no cover  (a grpcio that has moved it)
    cygrpc = None

_CODES = {code.value[0]: code for code in grpc.StatusCode}


def open_call(channel: grpc.Channel, method: str, metadata: Metadata) -> ClientCall:
    """Open a stream whose messages are bytes, the direct way if this grpcio has it."""
    try:
        return DirectCall(channel, method, metadata)
    except (AttributeError, TypeError):  # a grpcio with other names or arguments
        return ThreadedCall(channel, method, metadata)


class CallEnded(grpc.RpcError):  # type: ignore[misc]
    """The error of a stream that did not end well."""

    def __init__(self, operation: Any) -> None:
        self._status = operation
        super().__init__(f"{self.code().name}: {self.details()}")

    def code(self) -> grpc.StatusCode:
        """Return gRPC's status."""
        return _CODES.get(self._status.code(), grpc.StatusCode.UNKNOWN)

    def details(self) -> str:
        """Return the status in words."""
        details = self._status.details()
        return details.decode(errors="replace") if isinstance(details, bytes) else details or ""

    def trailing_metadata(self) -> Any:
        """Return the server's trailing metadata."""
        return self._status.trailing_metadata()


class DirectCall:
    """A ClientCall whose events are handled by the thread that receives.

    Frames are sent one at a time, and the event of one frame starts the next. While frames are queued and no thread
    receives, a helper thread handles the events. `_event_lock` lets one thread at a time wait for an event.
    """

    def __init__(self, channel: grpc.Channel, method: str, metadata: Metadata) -> None:
        """Open the stream. Raises AttributeError or TypeError where grpcio's private names are others."""
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
        self._outbox: deque[SupportsBytes | None] = deque()  # None: close our side
        self.outgoing = Outgoing()
        self._status: Any = None  # the operation that carries the final status
        self._receiving = self._sending = False
        self._lock = threading.Lock()  # guards the outbox, `_sending` and `_due`
        self._event_lock = threading.Lock()
        self._in_receive = False  # a thread receives, so the helper need not
        self._help_wanted = threading.Event()
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
        self._due = len(begin)  # operations that were started and have had no event yet

    def send(self, frame: SupportsBytes) -> None:
        """Queue a frame, and start to send it if none is being sent."""
        self._put(frame)

    def end(self) -> None:
        """Close our side after the frames that are queued."""
        self._put(None)

    def _put(self, frame: SupportsBytes | None) -> None:
        with self._lock:
            if frame is not None:
                self.outgoing.queue(frame)
            self._outbox.append(frame)
            if not self._sending:
                self._send_next()
                return
        self._wake_helper()

    def _send_next(self) -> None:
        """Start to send the next frame; gRPC takes one at a time. The caller holds `_lock`."""
        if not self._outbox:
            self._sending = False
            return
        frame = self._outbox.popleft()
        if frame is not None:
            self.outgoing.hand(frame)
        operation = self._send_close(0) if frame is None else self._send_message(bytes(frame), 0)
        self._sending = self._start(operation)

    def _start(self, operation: Any) -> bool:
        """Start an operation; return False if the call is over."""
        started: bool = self._call.operate((operation,), None)
        self._due += started
        return started

    def _wake_helper(self) -> None:
        """Have events handled although perhaps no thread receives."""
        if self._helper is None:
            self._helper = threading.Thread(target=self._help, name="sending", daemon=True)
            self._helper.start()
        self._help_wanted.set()

    def _help(self) -> None:
        while self._status is None:
            self._help_wanted.wait()
            self._help_wanted.clear()
            while self._outbox and not self._in_receive and self._status is None:
                with self._event_lock:
                    if self._sending and self._due:
                        self._handle_event()

    def _handle_event(self) -> None:
        """Wait for one event. The caller holds `_event_lock`, and an event is due."""
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
        """Wait for the next frame."""
        self._in_receive = True
        try:
            with self._event_lock:
                while not self._inbox:
                    if self._status is not None and not self._receiving:
                        self._raise_end()
                    if not self._receiving:
                        with self._lock:
                            self._receiving = self._start(self._receive_message(0))
                    if self._due:
                        self._handle_event()
                return self._inbox.popleft()
        finally:
            self._in_receive = False
            if self._outbox:
                self._wake_helper()

    def _raise_end(self) -> None:
        if _CODES.get(self._status.code()) is grpc.StatusCode.OK:
            raise StopIteration
        raise CallEnded(self._status)

    def cancel(self) -> None:
        """End both directions now; any thread may do it."""
        self._call.cancel(grpc.StatusCode.CANCELLED.value[0], "cancelled by this client")

    def close(self) -> None:
        """Cancel the call and handle all its events: gRPC keeps the call's queue as long as one is due."""
        self.cancel()
        self._in_receive = True  # keeps the helper away from the events
        with self._event_lock:
            while self._due:
                self._handle_event()
        self._help_wanted.set()  # the helper sees the status and ends
