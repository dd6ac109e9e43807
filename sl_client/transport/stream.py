"""Carries frames over one gRPC stream: the client's only contact with the network."""

from __future__ import annotations

import contextlib
from typing import Literal, Protocol, SupportsBytes

import grpc

from sl_client.transport.access import PLAINTEXT, Access
from sl_client.transport.grpc_call import open_call
from sl_common.errors import AGAIN, Refused
from sl_common.wire.frame import MAX_GRPC_MESSAGE
from sl_common.wire.greeting import REFUSED_BY

SERVICE_PATH = "/sl.v1.SplitLearning"
CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_GRPC_MESSAGE),
    ("grpc.max_send_message_length", MAX_GRPC_MESSAGE),
    ("grpc.http2.max_frame_size", 1 << 21),  # a chunk in one HTTP/2 frame
    ("grpc.http2.lookahead_bytes", 1 << 22),
    ("grpc.http2.bdp_probe", 0),  # its pings cost more than the window that they find
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.ping_timeout_ms", 20_000),  # what really bounds the wait for an answer; a minute by default
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)


class StreamBroken(Exception):
    """This stream is over; another one may go on."""


class RefusedForNow(StreamBroken):
    """The server has too much to do with others; it may have time later."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(f"refused for now ({code}): {reason}")
        self.code = code


class ClientStream(Protocol):
    """One stream. A broken one raises StreamBroken from `receive`; `send` never blocks. Opening one may raise ConfigError."""

    def send(self, frame: SupportsBytes) -> None:
        """Hand a frame to the stream; its bytes are made when its turn comes."""
        ...

    def receive(self) -> bytes:
        """The next frame; blocks. Raises StreamBroken, or Refused if another try is pointless."""
        ...

    def check(self, acknowledged: int) -> None:
        """Raise WireError if the server acknowledges a frame that has not gone out."""
        ...

    def close(self) -> None:
        """End the stream."""
        ...

    def cancel(self) -> None:
        """Break the stream, from another thread: a blocked `receive` raises StreamBroken."""
        ...

    def finish(self) -> None:
        """End the stream once what was sent has arrived."""
        ...


class GrpcCarrier:
    """A stream on a channel of its own."""

    def __init__(self, server: str, access: Access = PLAINTEXT, *, call: Literal["Train", "Infer"] = "Train") -> None:
        self._server = server
        self._access = access
        self._channel = access.channel(server, CHANNEL_OPTIONS)
        self._answered = False
        self._call = open_call(self._channel, f"{SERVICE_PATH}/{call}", access.metadata)

    def send(self, frame: SupportsBytes) -> None:
        """Hand a frame to the stream."""
        self._call.send(frame)

    def receive(self) -> bytes:
        """The next frame; blocks. Raises StreamBroken, or Refused if no stream can come about as we try it."""
        try:
            frame = next(self._call)
        except StopIteration:
            raise StreamBroken("the server ended the stream") from None
        except grpc.RpcError as error:
            if not self._answered and error.code() == grpc.StatusCode.UNAVAILABLE:
                refused = self._access.refusal(self._server)
                if refused is not None:
                    raise refused from None
            raise _broken(error) from None
        self._answered = True
        return frame

    def check(self, acknowledged: int) -> None:
        """Raise WireError if the server acknowledges a frame that has not gone out."""
        self._call.outgoing.check(acknowledged)

    def close(self) -> None:
        """End the stream."""
        self._call.close()
        self._channel.close()

    def cancel(self) -> None:
        """Break the stream, from any thread: a blocked `receive` raises StreamBroken."""
        self._call.cancel()

    def finish(self) -> None:
        """End our half and wait for the server to end its own, so that what we sent last arrives."""
        self._call.end()
        with contextlib.suppress(grpc.RpcError, StopIteration):
            while True:
                next(self._call)
        self.close()


def _broken(error: grpc.RpcError) -> StreamBroken | Refused:
    """What became of a stream: refused, with a word for programs beside gRPC's status, or broken."""
    trailing = getattr(error, "trailing_metadata", None)
    code = dict((trailing and trailing()) or ()).get(REFUSED_BY)
    if not isinstance(code, str):
        return StreamBroken(_words(error))
    return no_of(code, error.details() or code)


def no_of(code: str, reason: str) -> StreamBroken | Refused:
    """What a server's no is: one that time may change breaks a stream like any other fault."""
    return RefusedForNow(code, reason) if code in AGAIN else Refused(code, reason)


def _words(error: grpc.RpcError) -> str:
    code, details = getattr(error, "code", None), getattr(error, "details", None)
    return f"{code().name.lower()}: {details()}" if code and details else str(error)
