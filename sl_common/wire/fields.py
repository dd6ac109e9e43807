"""Scans a frame's protobuf fields before it is parsed: finds the chunk without copying it and counts entries.

Law: the work is bounded for any input. A varint has at most 10 bytes and 64 bits, a frame has few fields, and the scan
stops at the first entry beyond the limit. One byte of a header may take a hundred bytes in memory, so entries are
counted before the header is parsed.
"""

from __future__ import annotations

from functools import lru_cache

from sl_common.errors import WireError

MAX_HEADER = 1 << 20  # bytes of a frame without its chunk
CHUNK_FIELD = 15
_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5  # protobuf's wire types
_CHUNK_TAG = CHUNK_FIELD << 3 | _LENGTH_DELIMITED
_CHUNK_START = bytes([_CHUNK_TAG])
_VARINT_BYTES = 10
_FIELDS = 16  # at most, of a frame: number, acknowledgement, one header, timing, chunk; some spare
_SMALL = 1 << 13  # bytes of a header that is parsed without counting: it cannot take much memory


@lru_cache(maxsize=256)  # chunks of all steps have the same few lengths
def varint(number: int) -> bytes:
    """Return a number as protobuf writes it."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def begun(head: bytes, nbytes: int) -> bytes:
    """Return a frame up to the content of its chunk, which has `nbytes`.

    Serialized protobuf fields may be concatenated, so the tensor is copied once instead of three times.
    """
    return b"".join([head, _CHUNK_START, varint(nbytes)]) if nbytes else head


def split_frame(data: bytes) -> tuple[bytes, memoryview]:
    """Return a frame without its chunk, and a view of the chunk: parsing the whole frame would copy the tensor twice.

    If the chunk is not the last field, the whole frame and an empty view are returned, and the parser finds the chunk
    or the error. Raises WireError on a header that is too long.
    """
    at, length = 0, len(data)
    try:
        for _ in range(_FIELDS):
            if at >= length:
                break
            tag, number, after = data[at], data[at + 1], at + 2
            if number > 0x7F:
                number, after = read_varint(data, at + 1)
            if tag == _CHUNK_TAG:
                if after + number == length and at <= MAX_HEADER:
                    return data[:at], memoryview(data)[after:]
                break
            kind = tag & 7
            if tag > 0x7F or (kind != _VARINT and kind != _LENGTH_DELIMITED):
                break
            at = after + number if kind else after
    except IndexError:
        pass
    if len(data) > MAX_HEADER:
        raise WireError(f"a header of {len(data)} bytes, at most {MAX_HEADER} are allowed")
    return data, memoryview(b"")


def check_entries(head: bytes, most: int) -> None:
    """Raise WireError if the headers of a frame have more than `most` fields together, or if a field is cut off.

    Deeper levels are bounded by their bytes. A small frame is not scanned.
    """
    if len(head) <= _SMALL:
        return
    at = fields = entries = 0
    try:
        while at < len(head):
            fields += 1
            if fields > _FIELDS:
                raise WireError(f"a frame of more than {_FIELDS} fields")
            tag, at = read_varint(head, at)
            start, at = _content_of(head, at, tag & 7)
            if tag & 7 == _LENGTH_DELIMITED and tag != _CHUNK_TAG:
                entries = _count_fields(head, start, at, entries, most)
    except IndexError:
        raise WireError(f"a frame whose header of {len(head)} bytes ends within a field") from None


def _count_fields(head: bytes, at: int, end: int, entries: int, most: int) -> int:
    """Return `entries` plus the number of fields from `at` to `end`."""
    end = min(end, len(head))
    while at < end:
        entries += 1
        if entries > most:
            raise WireError(f"a header of more than {most} entries, no message of this run has as many")
        tag, at = (head[at], at + 1) if head[at] <= 0x7F else read_varint(head, at)
        if tag & 7 == _LENGTH_DELIMITED and head[at] <= 0x7F:  # the usual case
            at += 1 + head[at]
        else:
            _, at = _content_of(head, at, tag & 7)
    return entries


def _content_of(data: bytes, at: int, kind: int) -> tuple[int, int]:
    """Return where the content of a field begins and ends.

    Raises WireError on groups, which this protocol does not use.
    """
    match kind:
        case 0:
            return at, read_varint(data, at)[1]
        case 1:
            return at, at + 8
        case 2:
            number, after = read_varint(data, at)
            return after, after + number
        case 5:
            return at, at + 4
        case _:
            raise WireError(f"a header with a field of wire type {kind} at byte {at}")


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the number at `at` and the position after it.

    Raises WireError if it has more than 10 bytes or 64 bits, IndexError if the data end within it.
    """
    number = shift = 0
    for place in range(at, at + _VARINT_BYTES):
        byte = data[place]
        number |= (byte & 0x7F) << shift
        if byte <= 0x7F:
            if number >> 64:
                break
            return number, place + 1
        shift += 7
    raise WireError(f"a number of more than {_VARINT_BYTES} bytes or 64 bits at byte {at}")
