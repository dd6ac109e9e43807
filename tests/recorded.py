"""Records of an event log, made by hand: valid in their checksums, whatever they say."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

from sl_common.messages.events import Logged
from sl_common.wire import eventlog

LENGTHS = struct.Struct("<III")
CHECKS = struct.Struct("<II")
TENSOR = struct.Struct("<QI")


def record(name: bytes, header: bytes, bodies: Sequence[bytes] = (), count: int | None = None) -> bytes:
    """One record. `count`: how many tensors it says that it has."""
    lengths = LENGTHS.pack(len(name), len(header), len(bodies) if count is None else count)
    head = name + header + b"".join(TENSOR.pack(len(body), zlib.crc32(body)) for body in bodies)
    return lengths + CHECKS.pack(zlib.crc32(head), zlib.crc32(lengths)) + head + b"".join(bodies)


def parts(data: bytes) -> tuple[bytes, bytes, list[bytes], bytes]:
    """The first record of a log taken apart: name, header, tensors; and the bytes that follow."""
    name, header, count = LENGTHS.unpack_from(data)
    at = LENGTHS.size + CHECKS.size
    table = data[at + name + header :][: count * TENSOR.size]
    after, bodies = at + name + header + count * TENSOR.size, []
    for nbytes, _checksum in TENSOR.iter_unpack(table):
        bodies.append(data[after : after + nbytes])
        after += nbytes
    return data[at : at + name], data[at + name : at + name + header], bodies, data[after:]


def header_of(event: Logged) -> bytes:
    """The header of an event's record."""
    return parts(eventlog.dump("", event))[1]
