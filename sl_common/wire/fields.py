"""Protobuf's fields, walked by hand before anything is parsed: where a frame's chunk lies, and how much its header would become.

Law: the work is bounded whatever the bytes say. A varint has at most 10 bytes and 64 bits, a frame's own fields are few, and a walk ends
with the entry that is one too many. A byte of a header may become a hundred in memory, so entries are counted before it is parsed.
"""

from __future__ import annotations

from sl_common.errors import WireError

MAX_HEADER = 1 << 20  # bytes of a frame without its chunk
CHUNK_FIELD = 15
_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5  # protobuf's wire types
_CHUNK_TAG = CHUNK_FIELD << 3 | _LENGTH_DELIMITED
_VARINT_BYTES = 10
_FIELDS = 16  # of a frame: a number, an acknowledgement, one header, a timing, a chunk
_SMALL = 1 << 13  # bytes of a header that is parsed uncounted: what it can become is small


def varint(number: int) -> bytes:
    """As protobuf writes it."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def begun(head: bytes, nbytes: int) -> bytes:
    """A frame up to its chunk, whose field is begun by hand: protobuf fields concatenate, and so the tensor is copied once instead of three
    times."""
    return b"".join([head, bytes([_CHUNK_TAG]), varint(nbytes)]) if nbytes else head


def split_frame(data: bytes) -> tuple[bytes, memoryview]:
    """A frame without its chunk, and the chunk where it lies: parsing it whole would copy the tensor twice.

    Anything but a chunk at the very end is left to the parser, which then finds the chunk, or what is wrong. Raises WireError on a header
    that is too long.
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
    """Raise WireError if a frame's header, or anything else in it, has more than `most` fields, or could not be walked to its end.

    What lies deeper is bounded by its bytes. A small header is not looked at.
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
            start, at = _skipped(head, at, tag & 7)
            if tag & 7 == _LENGTH_DELIMITED and tag != _CHUNK_TAG:
                entries = _counted(head, start, at, entries, most)
    except IndexError:
        raise WireError(f"a frame whose header of {len(head)} bytes ends within a field") from None


def _counted(head: bytes, at: int, end: int, entries: int, most: int) -> int:
    """`entries` and those between two places."""
    end = min(end, len(head))
    while at < end:
        entries += 1
        if entries > most:
            raise WireError(f"a header of more than {most} entries, no message of this run has as many")
        tag, at = (head[at], at + 1) if head[at] <= 0x7F else read_varint(head, at)
        if tag & 7 == _LENGTH_DELIMITED and head[at] <= 0x7F:  # most of them
            at += 1 + head[at]
        else:
            _, at = _skipped(head, at, tag & 7)
    return entries


def _skipped(data: bytes, at: int, kind: int) -> tuple[int, int]:
    """Where the content of a field begins, and where it ends. Raises WireError on groups, which no message of ours has."""
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
    """The number that starts here, and where it ends. Raises WireError if it has more than 10 bytes or 64 bits, IndexError if it does not end."""
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
