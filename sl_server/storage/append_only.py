"""Files that only grow: bytes are appended in order, and kept in memory while the disk takes none.

Law: a byte is written once, at its place; a file is never made longer than what was written to it.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

MAX_WAITING_FILE = 16 << 20  # bytes of one file that are kept in memory while the disk does not take them
_ENOUGH = 64 << 10  # bytes that wait in memory before they are written


class GrowingFile:
    """One file of records, usually lines. A full disk loses nothing until `MAX_WAITING_FILE` bytes wait in memory."""

    def __init__(self, path: Path, length: int = 0) -> None:
        """Open a file and keep its first `length` bytes. Raises OSError, ValueError if it has fewer."""
        self.path = path
        self.lost = 0  # records that were dropped because too many bytes were waiting
        self._waiting = bytearray()
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        found = os.fstat(self._handle).st_size
        if found < length:
            os.close(self._handle)
            raise ValueError(f"{path} has {found} bytes, expected at least {length}")
        if found > length:
            os.ftruncate(self._handle, length)
        self._written = length
        self._durable = 0  # bytes that are known to survive a loss of power

    @property
    def length(self) -> int:
        """Length in bytes, including bytes that still wait in memory."""
        return self._written + len(self._waiting)

    @property
    def waiting(self) -> int:
        """Bytes that are not in the file yet."""
        return len(self._waiting)

    def write(self, text: str) -> int:
        """Append a record of text, as `append` does."""
        self.append(text.encode())
        return len(text)

    def append(self, record: bytes) -> None:
        """Append a record; never fails. The record is in the file after the next successful `flush`, unless it is
        counted in `lost`."""
        if self._waiting and len(self._waiting) + len(record) > MAX_WAITING_FILE:
            with contextlib.suppress(OSError):
                self.flush()
            if self._waiting:
                self.lost += 1
                return
        self._waiting += record
        if len(self._waiting) >= _ENOUGH:
            with contextlib.suppress(OSError):  # the next explicit flush reports the error
                self.flush()

    def flush(self) -> None:
        """Write everything that waits. Raises OSError, with the rest still waiting."""
        while self._waiting:
            with memoryview(self._waiting) as view:
                done = os.pwrite(self._handle, view, self._written)
            self._written += done
            del self._waiting[:done]

    def sync(self) -> int:
        """Make the whole file durable and return its length. Raises OSError."""
        self.flush()
        if self._durable != self._written:
            os.fsync(self._handle)
            self._durable = self._written
        return self._written

    def cut_back(self, length: int) -> None:
        """Remove everything after the first `length` bytes. Raises OSError, ValueError if there are fewer."""
        if length > self.length:
            raise ValueError(f"{self.path} has {self.length} bytes, cannot be cut back to {length}")
        del self._waiting[max(length - self._written, 0) :]
        if length < self._written:
            os.ftruncate(self._handle, length)
            self._written, self._durable = length, min(self._durable, length)

    def lines(self) -> int:
        """Count the lines, including those that wait in memory; reads the file."""
        count, place = self._waiting.count(b"\n"), 0
        while place < self._written:
            block = os.pread(self._handle, min(1 << 20, self._written - place), place)
            if not block:
                break
            count, place = count + block.count(b"\n"), place + len(block)
        return count

    def close(self) -> None:
        """Write what can be written, and close the file."""
        if self._handle < 0:
            return
        with contextlib.suppress(OSError):
            self.flush()
        os.close(self._handle)
        self._handle = -1
