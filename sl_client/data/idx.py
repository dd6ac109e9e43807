"""The IDX format of MNIST, plain or gzipped: what the header promises and what the file holds must agree to the byte.

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

_CHUNK = 1 << 20
_MORE = 1 << 22  # bytes too many that are counted
_Stream = BufferedReader | gzip.GzipFile


def read_idx(path: Path, dims: int) -> npt.NDArray[np.uint8]:
    """The array of one file, of `dims` dimensions; raises DataError naming the file and both numbers."""
    return read_rows(path, dims, None)[0]


def read_rows(path: Path, dims: int, rows: Indices | None) -> tuple[npt.NDArray[np.uint8], int]:
    """The same, of which only `rows`, in rising order, are kept in memory, if they are given; and how many rows the file has."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return _read(file, path, dims, rows)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _read(file: _Stream, path: Path, dims: int, rows: Indices | None) -> tuple[npt.NDArray[np.uint8], int]:
    size = 4 + 4 * dims
    header = _take(file, size)
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
        body = _take(file, promised)
        found = len(body)
    else:
        body, found = _pick(file, shape, rows)
    if found < promised:
        raise DataError(f"{path}: cut short: the header promises {promised} bytes {shape}, the file holds {found}")
    if extra := _drain(file):
        least = "" if extra < _MORE else "at least "
        raise DataError(
            f"{path}: {least}{extra} bytes too many: the header promises {promised} {shape}, "
            f"the file holds {least}{promised + extra}"
        )
    count = shape[0] if rows is None else int(np.searchsorted(rows, shape[0]))
    return np.frombuffer(body, dtype=np.uint8).reshape(count, *shape[1:]), shape[0]


def _pick(file: _Stream, shape: tuple[int, ...], rows: Indices) -> tuple[bytearray, int]:
    """The bytes of these rows, and how many bytes there were up to the last one that the header promises, or the end."""
    row = math.prod(shape[1:])
    block = max(1, _CHUNK // max(1, row))  # rows
    picked, found = bytearray(), 0
    for first in range(0, shape[0], block):
        taken = _take(file, min(block, shape[0] - first) * row)
        found += len(taken)
        if len(taken) < min(block, shape[0] - first) * row:
            break
        inside = rows[np.searchsorted(rows, first) : np.searchsorted(rows, min(first + block, shape[0]))] - first
        picked += np.frombuffer(taken, np.uint8).reshape(-1, row)[inside].tobytes()
    return picked, found


def _take(file: _Stream, size: int) -> bytearray:
    """Up to `size` bytes, in chunks: a header that promises terabytes must not make us allocate them."""
    taken = bytearray()
    try:
        while len(taken) < size and (chunk := file.read1(min(_CHUNK, size - len(taken)))):
            taken += chunk
    except EOFError:  # how gzip says that the file ends early; the caller knows both numbers
        pass
    return taken


def _drain(file: _Stream) -> int:
    """How many bytes follow, counted up to a few: a small file may unpack to gigabytes."""
    extra = 0
    while extra < _MORE and (chunk := file.read1(_CHUNK)):
        extra += len(chunk)
    return extra
