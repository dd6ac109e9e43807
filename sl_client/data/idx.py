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

_CHUNK = 1 << 20
_Stream = BufferedReader | gzip.GzipFile


def read_idx(path: Path, dims: int) -> npt.NDArray[np.uint8]:
    """The array of one file, of `dims` dimensions; raises DataError naming the file and both numbers."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return _read(file, path, dims)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _read(file: _Stream, path: Path, dims: int) -> npt.NDArray[np.uint8]:
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
    body = _take(file, promised)
    if len(body) < promised:
        raise DataError(f"{path}: cut short: the header promises {promised} bytes {shape}, the file holds {len(body)}")
    if extra := _drain(file):
        raise DataError(
            f"{path}: {extra} bytes too many: the header promises {promised} {shape}, the file holds {promised + extra}"
        )
    return np.frombuffer(body, dtype=np.uint8).reshape(shape)


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
    extra = 0
    while chunk := file.read1(_CHUNK):
        extra += len(chunk)
    return extra
