"""What a client's process does about its memory before it trains; nothing where the system is not Linux, or its malloc not glibc's.

Starting and building read more of torch's libraries than training does: 90 MB of them are mapped by then, and half is never looked at
again. These pages are clean and stay in the kernel's cache of files: one that is needed is mapped again, without being read.

That large blocks go back to the system at once (M_MMAP_THRESHOLD) would save as much again; each step would pay for it with twice the time.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

_ARENA_MAX = -8  # M_ARENA_MAX of glibc's malloc.h
_DONTNEED = 4  # MADV_DONTNEED of Linux


def use_one_arena() -> None:
    """Of malloc, from now on: what one thread has freed is there for the others."""
    mallopt = _of_libc("mallopt")
    if mallopt is not None:
        mallopt(_ARENA_MAX, 1)


def drop_clean_pages(maps: Path = Path("/proc/self/smaps")) -> int:
    """Unmap the pages of files that are mapped for reading alone, which come again when they are looked at: their bytes."""
    madvise = _of_libc("madvise")
    if madvise is None or not maps.exists():
        return 0
    given = 0
    for start, end, resident in _clean(maps.read_text(encoding="utf-8")):
        if madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _DONTNEED) == 0:
            given += resident
    return given


def _of_libc(name: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


def _clean(smaps: str) -> Iterator[tuple[int, int, int]]:
    """Start, end and resident bytes of what is privately mapped from a file and cannot be written, if no page differs from the file's."""
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
