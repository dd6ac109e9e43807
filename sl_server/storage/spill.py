"""Recorded batches on disk, in memory-mapped files without a name: they vanish with the process, or with their last
batch."""

from __future__ import annotations

import mmap
import os
import tempfile
from pathlib import Path

from sl_common.errors import CutlayerError
from sl_common.host.descriptors import cause

SEGMENT = 64 << 20  # bytes of one file


class DiskSpill:
    """Copies data into files under `folder`. Raises CutlayerError if the disk is full."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._segment = memoryview(b"")
        self._used = 0

    def __call__(self, data: memoryview) -> memoryview:
        """Return the same bytes in a file; the file is freed when nothing refers to any of its bytes."""
        if self._used + len(data) > len(self._segment):
            self._segment = self._new(max(SEGMENT, len(data)))
            self._used = 0
        place = self._segment[self._used : self._used + len(data)]
        place[:] = data
        self._used += -(-len(data) // 64) * 64
        return place

    def _new(self, nbytes: int) -> memoryview:
        try:
            with tempfile.TemporaryFile(dir=self._folder, prefix="recordings-") as file:
                # reserve the space now: a disk that fills up later would kill the process
                os.posix_fallocate(file.fileno(), 0, nbytes)
                return memoryview(mmap.mmap(file.fileno(), nbytes))
        except OSError as error:
            raise CutlayerError(f"no room on disk for recorded activations ({nbytes} bytes): {cause(error)}") from error
