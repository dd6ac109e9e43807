"""Saves memory of a client's process before it trains; does nothing on other systems than Linux with glibc.

Start and construction read more of torch's libraries than training does: 90 MB of them are mapped by then, and half is
not used again. These pages are clean and stay in the kernel's page cache: one that is needed is mapped again without a
read from disk.

To return large blocks to the system at once (M_MMAP_THRESHOLD) would save as much again, but each step would take twice
the time.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

_ARENA_MAX = -8  # M_ARENA_MAX of glibc's malloc.h
_DONTNEED = 4  # MADV_DONTNEED of Linux


def use_one_arena() -> None:
    """Make malloc use one arena from now on, so that memory which one thread frees serves the others."""
    mallopt = _libc_function("mallopt")
    if mallopt is not None:
        mallopt(_ARENA_MAX, 1)


def drop_clean_pages(maps: Path = Path("/proc/self/smaps")) -> int:
    """Unmap the clean pages of files mapped for reading, which are mapped again when used; return their bytes."""
    madvise = _libc_function("madvise")
    if madvise is None or not maps.exists():
        return 0
    dropped = 0
    for start, end, resident in _clean_mappings(maps.read_text(encoding="utf-8")):
        if madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _DONTNEED) == 0:
            dropped += resident
    return dropped


def _libc_function(name: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


def _clean_mappings(smaps: str) -> Iterator[tuple[int, int, int]]:
    """Yield start, end and resident bytes of each private, read-only mapping of a file of which no page was changed."""
    start = end = resident = 0
    readable = False
    for line in smaps.splitlines():
        first, *rest = line.split()
        if not first.endswith(":"):
            start, end = (int(address, 16) for address in first.split("-"))
            readable = rest[0] in ("r--p", "r-xp") and len(rest) > 4 and rest[4].startswith("/")
        elif first == "Rss:":
            resident = 1024 * int(rest[0])
        elif first == "Anonymous:" and readable and resident and rest[0] == "0":
            yield start, end, resident
