"""A coordinator's events as self-contained records with checksums, so that a run can be replayed from a file.

record = lengths, CRC-32 of the rest of the head, CRC-32 of the lengths | name, header, (length, CRC-32) of each tensor
| tensors
"""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from google.protobuf.message import DecodeError
from pydantic import TypeAdapter

from sl_common.codec import Coding, Layout, Link, Packed
from sl_common.errors import WireError
from sl_common.messages.events import Advanced, Failed, Joined, Left, Logged, Restored, Saved, Stopped, Tick
from sl_common.messages.training import Aligned
from sl_common.proto import split_pb2 as pb
from sl_common.tensors import aligned_buffer
from sl_common.wire import translate
from sl_common.wire.bounds import MAX_OTHERS, MAX_TENSORS
from sl_common.wire.fields import check_entries
from sl_common.wire.formats import BY_NAME

LOG_VERSION = 2  # version 1 (cutlayer 0.1.0 before November 2026) held events alone, without checksums and digests
MAX_RECORD = 64 << 20  # bytes of one record without its tensors
_LENGTHS = struct.Struct("<III")  # bytes of the client's name, of the header, and how many tensors follow
_CHECKS = struct.Struct("<II")  # CRC-32 of name, header and tensor table, and of the lengths
_TENSOR = struct.Struct("<QI")  # length of a tensor, and its CRC-32
_EXACT = Link()  # events hold decoded tensors, which are written without a codec
_LOG_ONLY = {kind.__name__.lower(): kind for kind in (Joined, Left, Tick, Advanced, Saved, Restored, Stopped, Failed)}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Entry:
    """One record of a log."""

    number: int  # from 1
    at: int  # position of the record in bytes
    client: str  # "" for an event that concerns no client
    event: Logged


def dump(client: str, event: Logged) -> bytes:
    """Serialize one event of one client to a record."""
    name = client.encode()
    if type(event).__name__.lower() in _LOG_ONLY:
        fields = asdict(event)
        return _record(name, json.dumps({"event": type(event).__name__.lower(), **fields}).encode(), [])
    kind, frame = (b"S", pb.ServerFrame()) if isinstance(event, Aligned) else (b"P", pb.ClientFrame())
    packed = translate.encode(event, frame, _EXACT, Coding())  # type: ignore[arg-type]
    return _record(name, kind + frame.SerializeToString(), [bytes(one.data) for one in packed])


def _record(name: bytes, header: bytes, bodies: list[bytes]) -> bytes:
    lengths = _LENGTHS.pack(len(name), len(header), len(bodies))
    head = b"".join([name, header, *(_TENSOR.pack(len(body), zlib.crc32(body)) for body in bodies)])
    return b"".join([lengths, _CHECKS.pack(zlib.crc32(head), zlib.crc32(lengths)), head, *bodies])


class LogReader:
    """Reads records one after another; only one is in memory at a time."""

    def __init__(self, read: Callable[[int], bytes], length: int) -> None:
        """`read(n)` returns the next n bytes; `length` is the number of bytes in the log."""
        self._read = read
        self.length = length
        self.at = 0  # bytes of complete records so far
        self._number = 0

    @property
    def cut_short(self) -> int:
        """Bytes after the last complete record once all were read: the writer was stopped within a record."""
        return self.length - self.at

    def __iter__(self) -> Iterator[Entry]:
        """Yield all records in order, without an incomplete last one.

        Raises WireError on damage, naming record and byte.
        """
        while (entry := self._next()) is not None:
            yield entry

    def _next(self) -> Entry | None:
        where = f"event log: event {self._number + 1} at byte {self.at}"
        try:
            found = self._record()
        except _CutShort:
            return None
        except WireError as error:
            raise WireError(f"{where}: {error}") from error
        except (struct.error, DecodeError, ValueError, KeyError, TypeError, RecursionError) as error:
            cause = f"{type(error).__name__}: {str(error)[:200]}"
            raise WireError(f"{where}: a record that makes no sense: {cause}") from error
        client, event, nbytes = found
        entry = Entry(number=self._number + 1, at=self.at, client=client, event=event)
        self._number, self.at = entry.number, self.at + nbytes
        return entry

    def _record(self) -> tuple[str, Logged, int]:
        room = self.length - self.at
        size = _LENGTHS.size + _CHECKS.size
        start = self._take(size, room)
        lengths = start[: _LENGTHS.size]
        name_length, header_length, count = _LENGTHS.unpack(lengths)
        head_sum, lengths_sum = _CHECKS.unpack(start[_LENGTHS.size :])
        if zlib.crc32(lengths) != lengths_sum:
            raise WireError(f"damaged: the checksum of its lengths is {zlib.crc32(lengths):08x}, not {lengths_sum:08x}")
        head_length = name_length + header_length + count * _TENSOR.size
        if head_length > MAX_RECORD:
            raise WireError(f"a header of {head_length} bytes, at most {MAX_RECORD} are possible")
        head = self._take(head_length, room - size)
        if zlib.crc32(head) != head_sum:
            raise WireError(f"damaged: the checksum of its header is {zlib.crc32(head):08x}, not {head_sum:08x}")
        size += head_length
        client = head[:name_length].decode()
        header, table = head[name_length:][:header_length], head[name_length + header_length :]
        tensors = list(_TENSOR.iter_unpack(table))
        if header[:1] == b"{":
            return client, _log_only_event(header), size
        return client, self._message(header, tensors, room - size), size + sum(nbytes for nbytes, _ in tensors)

    def _message(self, header: bytes, tensors: list[Any], room: int) -> Logged:
        check_entries(header[1:], MAX_TENSORS + MAX_OTHERS)
        frame = (pb.ServerFrame if header[:1] == b"S" else pb.ClientFrame).FromString(header[1:])
        field = frame.WhichOneof("header")
        if field is None:
            raise WireError("a record without an event")
        message = getattr(frame, field)
        form = BY_NAME[field]
        layouts = [translate.read_layout(tensor) for tensor in form.tensor_headers(message)]
        packed = []
        for number, (layout, (nbytes, checksum)) in enumerate(zip(layouts, tensors, strict=True)):
            if nbytes != layout.nbytes:  # before memory is allocated for it
                raise WireError(f"a tensor of {nbytes} bytes, its header says {layout.nbytes}")
            body = self._take(nbytes, room)
            room -= nbytes
            if zlib.crc32(body) != checksum:
                which = f"{field}, tensor {number + 1} of {len(tensors)}, {_name_of(field, message, number)}"
                raise WireError(f"damaged: {which}: its checksum is {zlib.crc32(body):08x}, not {checksum:08x}")
            packed.append(_aligned(layout, body))
        schemes = [_EXACT.agreed(form.role, one.layout) for one in packed]
        return translate.decode(form, message, packed, schemes, Coding())  # type: ignore[return-value]

    def _take(self, nbytes: int, room: int) -> bytes:
        if nbytes > room:
            raise _CutShort
        data = self._read(nbytes)
        if len(data) != nbytes:  # the file was truncated meanwhile
            raise _CutShort
        return data


def load_events(data: bytes) -> Iterator[tuple[str, Logged]]:
    """Yield the events of a log in order, without an incomplete last one. Raises WireError on damage."""
    for entry in LogReader(io.BytesIO(data).read, len(data)):
        yield entry.client, entry.event


class _CutShort(Exception):
    pass


def _log_only_event(header: bytes) -> Logged:
    """Parse an event that only logs have. Raises ValueError or KeyError if its kind or a field is unknown."""
    fields = json.loads(header)
    kind = _LOG_ONLY[fields.pop("event")]
    if unknown := sorted(fields.keys() - set(kind.__slots__)):
        raise ValueError(f"a {kind.__name__.lower()} has no {unknown[0]!r:.50}")
    return _adapter(kind).validate_json(json.dumps(fields), strict=True)  # type: ignore[no-any-return]


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _name_of(field: str, message: Any, number: int) -> str:
    """Return the name of a message's n-th tensor for an error."""
    if field == "smashed":
        return "yz"[number]
    named = getattr(message, "weights", None)
    return "dz" if named is None else f"{named[number].part}/{named[number].name}"


def _aligned(layout: Layout, body: bytes) -> Packed:
    memory = aligned_buffer(layout.nbytes)
    memory[:] = body
    return Packed(layout=layout, data=memory)
