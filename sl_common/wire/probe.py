"""Echo that `sl-client doctor` measures a link with. Its sizes are bounded, so that it cannot load a server."""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.message import DecodeError

from sl_common import __version__
from sl_common.errors import WireError
from sl_common.names import MAX_NAME
from sl_common.proto import split_pb2 as pb
from sl_common.wire.greeting import WIRE_VERSION

MAX_PINGS = 64
MAX_PAYLOAD = 1 << 20
MAX_PING = MAX_PAYLOAD + 1024  # bytes of a whole ping


@dataclass(frozen=True, kw_only=True, slots=True)
class Pong:
    """Answer of a server to a ping."""

    nbytes: int
    software: str
    version: int


def ping(nbytes: int, reply_bytes: int) -> bytes:
    """Serialize a ping with a payload of `nbytes` that asks for `reply_bytes`."""
    return pb.Ping(payload=bytes(nbytes), reply_bytes=reply_bytes).SerializeToString()


def answer(data: bytes) -> bytes:
    """Return the server's answer to a ping. Raises ValueError if it is malformed or asks for too much."""
    if len(data) > MAX_PING:
        raise ValueError(f"ping of {len(data)} bytes, at most {MAX_PING} are allowed")
    try:
        asked = pb.Ping.FromString(data)
    except DecodeError as error:
        raise ValueError(f"{len(data)} bytes that are no ping") from error
    if max(len(asked.payload), asked.reply_bytes) > MAX_PAYLOAD:
        raise ValueError(
            f"ping of {len(asked.payload)} bytes asks for {asked.reply_bytes}, at most {MAX_PAYLOAD} are allowed"
        )
    return pb.Ping(payload=bytes(asked.reply_bytes), software=__version__, version=WIRE_VERSION).SerializeToString()


def read_pong(data: bytes) -> Pong:
    """Parse the answer to a ping. Raises WireError if it is malformed."""
    if len(data) > MAX_PING:
        raise WireError(f"an answer to a ping of {len(data)} bytes, at most {MAX_PING} are allowed")
    try:
        pong = pb.Ping.FromString(data)
    except DecodeError as error:
        raise WireError(f"{len(data)} bytes that are no answer to a ping") from error
    return Pong(nbytes=len(pong.payload), software=pong.software[:MAX_NAME], version=pong.version)
