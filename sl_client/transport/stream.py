"""One gRPC stream of frames, as a client opens it."""

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
    ("grpc.http2.max_frame_size", 1 << 21),  # a chunk fits in one HTTP/2 frame
    ("grpc.http2.lookahead_bytes", 1 << 22),
    ("grpc.http2.bdp_probe", 0),  # its pings cost more than the larger window gains
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.ping_timeout_ms", 20_000),  # the bound that takes effect in gRPC; its default is a minute
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)


class StreamBroken(Exception):
    """The stream ended; the session can go on over another one."""


class RefusedForNow(StreamBroken):
    """The server refused the stream for a reason that time may change, such as too many others."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(f"refused for now ({code}): {reason}")
        self.code = code


class ClientStream(Protocol):
    """One bidirectional stream. `send` never blocks; `receive` raises StreamBroken when the stream is over."""

    def send(self, frame: SupportsBytes) -> None:
        """Queue a frame; it is serialised when gRPC takes it."""
        ...

    def receive(self) -> bytes:
        """Wait for the next frame. Raises StreamBroken, or Refused if another try is pointless."""
        ...

    def check(self, acknowledged: int) -> None:
        """Raise WireError if the server acknowledges a frame that was not sent yet."""
        ...

    def close(self) -> None:
        """End the stream."""
        ...

    def cancel(self) -> None:
        """Break the stream, from any thread: a blocked `receive` raises StreamBroken."""
        ...

    def finish(self) -> None:
        """Close our side, wait until all sent frames have arrived, then end the stream."""
        ...


class GrpcStream:
    """A ClientStream on a gRPC channel of its own."""

    def __init__(self, server: str, access: Access = PLAINTEXT, *, call: Literal["Train", "Infer"] = "Train") -> None:
        """Open the stream; it connects in the background. Raises ConfigError if a TLS file cannot be used."""
        self._server = server
        self._access = access
        self._channel = access.channel(server, CHANNEL_OPTIONS)
        self._answered = False
        self._call = open_call(self._channel, f"{SERVICE_PATH}/{call}", access.metadata)

    def send(self, frame: SupportsBytes) -> None:
        """Queue a frame; it is serialised when gRPC takes it."""
        self._call.send(frame)

    def receive(self) -> bytes:
        """Wait for the next frame. Raises StreamBroken, or Refused if another try is pointless."""
        try:
            frame = next(self._call)
        except StopIteration:
            raise StreamBroken("the server ended the stream") from None
        except grpc.RpcError as error:
            if not self._answered and error.code() == grpc.StatusCode.UNAVAILABLE:
                refused = self._access.refusal(self._server)
                if refused is not None:
                    raise refused from None
            raise _error_of(error) from None
        self._answered = True
        return frame

    def check(self, acknowledged: int) -> None:
        """Raise WireError if the server acknowledges a frame that was not sent yet."""
        self._call.outgoing.check(acknowledged)

    def close(self) -> None:
        """End the stream."""
        self._call.close()
        self._channel.close()

    def cancel(self) -> None:
        """Break the stream, from any thread: a blocked `receive` raises StreamBroken."""
        self._call.cancel()

    def finish(self) -> None:
        """Close our side and wait until the server closes its own, so that our last frames arrive.

        Then end the stream.
        """
        self._call.end()
        with contextlib.suppress(grpc.RpcError, StopIteration):
            while True:
                next(self._call)
        self.close()


def _error_of(error: grpc.RpcError) -> StreamBroken | Refused:
    """Return Refused if the trailing metadata of gRPC's error has the code of a refusal, else StreamBroken."""
    trailing = getattr(error, "trailing_metadata", None)
    code = dict((trailing and trailing()) or ()).get(REFUSED_BY)
    if not isinstance(code, str):
        return StreamBroken(_text_of(error))
    return refusal_error(code, error.details() or code)


def refusal_error(code: str, reason: str) -> StreamBroken | Refused:
    """Return the error for a server's refusal: RefusedForNow, a StreamBroken, if time may change it, else Refused."""
    return RefusedForNow(code, reason) if code in AGAIN else Refused(code, reason)


def _text_of(error: grpc.RpcError) -> str:
    code, details = getattr(error, "code", None), getattr(error, "details", None)
    return f"{code().name.lower()}: {details()}" if code and details else str(error)
