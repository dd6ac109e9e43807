"""The IDX format of MNIST, plain or gzipped; header and file size must agree to the byte.

Source: LeCun, Cortes and Burges, "The MNIST database", section FILE FORMATS. Deviation: unsigned bytes (0x08) only.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from io import BufferedReader
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sl_common.errors import DataError
from sl_common.partition import Indices

_CHUNK = 1 << 20  # bytes
_MOST_EXTRA = 1 << 22  # bytes after the array that are counted at most
_Stream = BufferedReader | gzip.GzipFile


def read_idx(path: Path, dims: int) -> npt.NDArray[np.uint8]:
    """Read the array of one file, of `dims` dimensions. Raises DataError that names the file and both numbers."""
    return read_rows(path, dims, None)[0]


def read_rows(path: Path, dims: int, rows: Indices | None) -> tuple[npt.NDArray[np.uint8], int]:
    """Read an array and return the rows in `rows` (rising order; None: all) and the number of rows in the file.

    Only those rows are kept in memory. Raises as `read_idx` does.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return _read(file, path, dims, rows)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _read(file: _Stream, path: Path, dims: int, rows: Indices | None) -> tuple[npt.NDArray[np.uint8], int]:
    size = 4 + 4 * dims
    header = _read_up_to(file, size)
    magic = 0x0800 | dims
    if len(header) >= 4 and (found := int.from_bytes(header[:4], "big")) != magic:
        raise DataError(
            f"{path}: starts with 0x{found:08x}, an IDX file of bytes in {dims} dimensions with 0x{magic:08x}"
        )
    if len(header) < size:
        raise DataError(f"{path}: cut short: the header is {size} bytes, the file holds {len(header)}")
    shape: tuple[int, ...] = struct.unpack(f">{dims}I", header[4:])
    promised = math.prod(shape)
    if shape[0] and not promised:
        raise DataError(f"{path}: promises {shape[0]} rows of nothing {shape}")
    if rows is None:
        body = _read_up_to(file, promised)
        found = len(body)
    else:
        body, found = _pick(file, shape, rows)
    if found < promised:
        raise DataError(f"{path}: cut short: the header promises {promised} bytes {shape}, the file holds {found}")
    if extra := _count_extra(file):
        least = "" if extra < _MOST_EXTRA else "at least "
        raise DataError(
            f"{path}: {least}{extra} bytes too many: the header promises {promised} {shape}, "
            f"the file holds {least}{promised + extra}"
        )
    count = shape[0] if rows is None else int(np.searchsorted(rows, shape[0]))
    return np.frombuffer(body, dtype=np.uint8).reshape(count, *shape[1:]), shape[0]


def _pick(file: _Stream, shape: tuple[int, ...], rows: Indices) -> tuple[bytearray, int]:
    """Return the bytes of these rows, and how many bytes of the array the file holds."""
    row = math.prod(shape[1:])
    block = max(1, _CHUNK // max(1, row))  # rows
    picked, found = bytearray(), 0
    for first in range(0, shape[0], block):
        taken = _read_up_to(file, min(block, shape[0] - first) * row)
        found += len(taken)
        if len(taken) < min(block, shape[0] - first) * row:
            break
        inside = rows[np.searchsorted(rows, first) : np.searchsorted(rows, min(first + block, shape[0]))] - first
        picked += np.frombuffer(taken, np.uint8).reshape(-1, row)[inside].tobytes()
    return picked, found


def _read_up_to(file: _Stream, size: int) -> bytearray:
    """Read up to `size` bytes, in chunks: a header that announces terabytes must not make us allocate them."""
    taken = bytearray()
    try:
        while len(taken) < size and (chunk := file.read1(min(_CHUNK, size - len(taken)))):
            taken += chunk
    except EOFError:  # gzip's error for a file that ends early; the caller reports both numbers
        pass
    return taken


def _count_extra(file: _Stream) -> int:
    """Return how many bytes follow, counted up to `_MOST_EXTRA`: a small file may unpack to gigabytes."""
    extra = 0
    while extra < _MOST_EXTRA and (chunk := file.read1(_CHUNK)):
        extra += len(chunk)
    return extra
