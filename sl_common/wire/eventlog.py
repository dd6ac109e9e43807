"""A coordinator's events as bytes, each whole and self-contained, so that a run can be replayed from a file."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator

from google.protobuf.message import DecodeError

from sl_common.codec import Coding, Layout, Link, Packed
from sl_common.errors import WireError
from sl_common.messages import Advanced, Aligned, Joined, Left, Logged, Restored, Saved, Tick
from sl_common.proto import split_pb2 as pb
from sl_common.tensors import aligned_buffer
from sl_common.wire import translate
from sl_common.wire.fields import check_entries

_LENGTHS = struct.Struct("<III")  # bytes of the client's name, of the header, and how many tensors follow
_NBYTES = struct.Struct("<Q")
_EXACT = Link()  # events hold decoded tensors; they are written as they are
_OWN = {kind.__name__.lower(): kind for kind in (Joined, Left, Tick, Advanced, Saved, Restored)}


def dump(client: str, event: Logged) -> bytes:
    """One event of one client: lengths, name, header, then each tensor with its length."""
    name = client.encode()
    if isinstance(event, Joined | Left | Tick | Advanced | Saved | Restored):
        fields = {slot: getattr(event, slot) for slot in event.__slots__}
        header = json.dumps({"event": type(event).__name__.lower(), **fields}).encode()
        return _LENGTHS.pack(len(name), len(header), 0) + name + header
    field, message, packed = translate.encode(event, _EXACT, Coding())
    kind, frame = (b"S", pb.ServerFrame()) if isinstance(event, Aligned) else (b"P", pb.ClientFrame())
    getattr(frame, field).CopyFrom(message)
    header = kind + frame.SerializeToString()
    parts = [_LENGTHS.pack(len(name), len(header), len(packed)), name, header]
    for one in packed:
        parts += [_NBYTES.pack(one.layout.nbytes), bytes(one.data)]
    return b"".join(parts)


def load(data: bytes) -> Iterator[tuple[str, Logged]]:
    """The events of a log, in order. A last event that was cut short is left out. Raises WireError on garbage."""
    view = memoryview(data)
    try:
        while len(view) >= _LENGTHS.size:
            client, event, view = _load_one(view)
            yield client, event
    except (struct.error, _CutShort):
        return
    except (DecodeError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise WireError(
            f"event log: a record that makes no sense: {type(error).__name__}: {str(error)[:200]}"
        ) from error


class _CutShort(Exception):
    pass


def _take(view: memoryview, nbytes: int) -> tuple[memoryview, memoryview]:
    if len(view) < nbytes:
        raise _CutShort
    return view[:nbytes], view[nbytes:]


def _load_one(view: memoryview) -> tuple[str, Logged, memoryview]:
    head, view = _take(view, _LENGTHS.size)
    name_length, header_length, count = _LENGTHS.unpack(head)
    name, view = _take(view, name_length)
    header, view = _take(view, header_length)
    bodies = []
    for _ in range(count):
        length, view = _take(view, _NBYTES.size)
        body, view = _take(view, _NBYTES.unpack(length)[0])
        bodies.append(body)
    client = bytes(name).decode()
    if bytes(header[:1]) == b"{":
        fields = json.loads(bytes(header))
        return client, _OWN[fields.pop("event")](**fields), view
    check_entries(bytes(header[1:]), translate.MAX_TENSORS + translate.MAX_OTHERS)
    frame = (pb.ServerFrame if bytes(header[:1]) == b"S" else pb.ClientFrame).FromString(bytes(header[1:]))
    field = frame.WhichOneof("header")
    if field is None:
        raise WireError("event log: a record without an event")
    message = getattr(frame, field)
    layouts = [translate.read_layout(tensor) for tensor in translate.tensor_headers(field, message)]
    packed = [_aligned(layout, body) for layout, body in zip(layouts, bodies, strict=True)]
    schemes = [_EXACT.agreed(translate.direction_of(field), one.layout) for one in packed]
    return client, translate.decode(field, message, packed, schemes, Coding()), view  # type: ignore[return-value]


def _aligned(layout: Layout, body: memoryview) -> Packed:
    if len(body) != layout.nbytes:  # before memory is taken for it
        raise WireError(f"event log: a tensor of {len(body)} bytes, its header says {layout.nbytes}")
    memory = aligned_buffer(layout.nbytes)
    memory[:] = body
    return Packed(layout=layout, data=memory)
