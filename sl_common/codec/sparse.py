"""Steps that sparse codecs share: kept values in full, and their positions.

Positions are a bitmap or indices, whichever is smaller. The body is values, then positions. Indices count within their
row and take ⌈log2 d⌉ bits each.
"""

from __future__ import annotations

import struct
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sl_common.codec.bits import ByteArray, packed_nbytes
from sl_common.codec.numbers import checked, from_float32
from sl_common.codec.packed import Layout, Packed, make_layout
from sl_common.codec.select import Positions
from sl_common.errors import WireError

Precision = Literal["float32", "float16"]
_PARAMS = struct.Struct("<Q")
_MAX_BLOCK = 1 << 13  # indices read at a time; a multiple of 8, so that each block begins with a byte
_TOP16 = np.float32(65504)


def value_nbytes(precision: Precision) -> int:
    """Return the bytes of one kept value."""
    return 4 if precision == "float32" else 2


def write_values(values: NDArray[np.float32], precision: Precision) -> tuple[ByteArray, NDArray[np.float32]]:
    """Return the bytes of values, and the values as they will arrive."""
    if precision == "float32":
        return np.ascontiguousarray(values).view(np.uint8), values
    half = np.clip(values, -_TOP16, _TOP16).astype("<f2")
    return half.view(np.uint8), half.astype(np.float32)


def read_values(kind: str, body: ByteArray, count: int, precision: Precision) -> tuple[NDArray[np.float32], ByteArray]:
    """Return (`count` values, the bytes after them). Raise WireError if one is not finite."""
    end = count * value_nbytes(precision)
    values = body[:end].view("<f4" if precision == "float32" else "<f2").astype(np.float32, copy=False)
    if not np.isfinite(values).all():
        raise WireError(f"codec {kind}: NaN or Inf among the values")
    return values, body[end:]


def index_bits(width: int) -> int:
    """Return ⌈log2 d⌉."""
    return max(width - 1, 0).bit_length()


def positions_nbytes(rows: int, width: int, k: int) -> int:
    """Return the bytes of a bitmap or of indices, whichever is smaller."""
    return min(packed_nbytes(rows * width, 1), packed_nbytes(rows * k, index_bits(width)))


def _is_bitmap(rows: int, width: int, k: int) -> bool:
    return packed_nbytes(rows * width, 1) <= packed_nbytes(rows * k, index_bits(width))


def write_positions(at: Positions, rows: int, width: int, k: int) -> ByteArray:
    """Encode ascending positions in the flattened rows, k in each."""
    if _is_bitmap(rows, width, k):
        plane = np.zeros(rows * width, np.uint8)
        plane[at] = 1
        return np.packbits(plane, bitorder="little")
    within = (at % width).astype("<u8")
    bits = np.unpackbits(within.view(np.uint8).reshape(-1, 8), axis=1, bitorder="little")[:, : index_bits(width)]
    return np.packbits(bits.reshape(-1), bitorder="little")


def _read_indices(data: ByteArray, count: int, bits: int) -> Positions:
    """Return (count,) numbers of `bits` bits each; block by block, since each needs 64 bytes of scratch."""
    found = np.empty(count, np.intp)
    for start in range(0, count, _MAX_BLOCK):
        stop = min(start + _MAX_BLOCK, count)
        packed = data[start * bits // 8 : packed_nbytes(stop, bits)]
        planes = np.zeros((stop - start, 64), np.uint8)
        plane = np.unpackbits(packed, count=(stop - start) * bits, bitorder="little")
        planes[:, :bits] = plane.reshape(stop - start, bits)
        found[start:stop] = np.packbits(planes, axis=1, bitorder="little").view("<u8").reshape(-1)
    return found


def read_positions(kind: str, data: ByteArray, rows: int, width: int, k: int) -> Positions:
    """Return the positions. Raise WireError unless there are k in each row, ascending and inside it."""
    if _is_bitmap(rows, width, k):
        at = np.flatnonzero(np.unpackbits(data, count=rows * width, bitorder="little"))
        within = at % max(width, 1)
    else:
        within = _read_indices(data, rows * k, index_bits(width))
        at = within + np.repeat(np.arange(rows) * width, k)
    if (
        len(at) != rows * k
        or (within >= max(width, 1)).any()
        or (at.reshape(rows, k) // max(width, 1) != np.arange(rows)[:, None]).any()
        or (np.diff(at.reshape(rows, k), axis=1) <= 0).any()
    ):
        raise WireError(f"codec {kind}: positions are not {k} ascending ones in each of {rows} rows of {width}")
    return at


# --- a whole tensor: k values of each row, zero elsewhere


def sparse_nbytes(rows: int, width: int, k: int, precision: Precision) -> int:
    """Return the encoded bytes of a tensor."""
    return rows * k * value_nbytes(precision) + positions_nbytes(rows, width, k)


def encode_sparse(
    kind: str, x: Tensor, rows: NDArray[np.float32], at: Positions, k: int, precision: Precision
) -> Packed:
    """Encode x, whose elements are `rows`, by its elements at these positions."""
    values, _ = write_values(rows.reshape(-1)[at], precision)
    body = np.concatenate([values, write_positions(at, rows.shape[0], rows.shape[1], k)])
    return Packed(layout=make_layout(kind, x, len(body), _PARAMS.pack(k)), data=body.data)


def check_sparse(kind: str, layout: Layout, rows: int, width: int, k: int, precision: Precision) -> None:
    """Raise WireError unless the header has this k and the bytes that follow from it."""
    checked(kind, layout, sparse_nbytes(rows, width, k, precision), _PARAMS.size)
    (header_k,) = _PARAMS.unpack(layout.params)
    if header_k != k:
        raise WireError(f"codec {kind}: header has k = {header_k}, this run k = {k} of {width}")


def decode_sparse(kind: str, packed: Packed, rows: int, width: int, precision: Precision) -> Tensor:
    """Return the tensor. Raise WireError if the body contradicts its header."""
    (k,) = _PARAMS.unpack(packed.layout.params)
    values, rest = read_values(kind, np.frombuffer(packed.data, np.uint8), rows * k, precision)
    out = np.zeros(rows * width, np.float32)
    out[read_positions(kind, rest, rows, width, k)] = values
    return from_float32(out, packed.layout)
