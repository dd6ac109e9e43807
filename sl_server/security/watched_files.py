"""What was read from files, and is read anew when they change: a run must not end for a renewed certificate."""

from __future__ import annotations

import stat
from codecs import BOM_UTF8
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from sl_common.errors import ConfigError
from sl_common.host.descriptors import is_spent
from sl_common.host.files import MAX_PAPER, read_bounded

T = TypeVar("T")


class Watched(Generic[T]):
    """The value of `read`, which raises ConfigError. What cannot be read later leaves the last good one in place, and is said once."""

    def __init__(self, files: Sequence[Path], read: Callable[[], T]) -> None:
        self._files = files
        self._read = read
        self._warn: Callable[[str], None] = lambda _text: None
        self._seen = self._stamps()  # before reading: what changes meanwhile is read again
        self.current = read()
        self.version = 0  # how often it was read again

    def attach(self, warn: Callable[[str], None]) -> None:
        """From now on there is somebody to tell."""
        self._warn = warn

    def renew(self) -> bool:
        """Read again if a file has changed; whether there is something new. From any thread."""
        stamps = self._stamps()
        if stamps == self._seen:
            return False
        self._seen = stamps
        try:
            self.current = self._read()
        except ConfigError as error:
            if is_spent(error):  # they were not looked at: again the next time
                self._seen = []
                return False
            self._warn(f"{error}; what was read before stays in use")
            return False
        self.version += 1
        return True

    def _stamps(self) -> list[tuple[int, int, int] | None]:
        return [_stamp(path) for path in self._files]


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def read_file(option: str, path: Path, most: int = MAX_PAPER) -> bytes:
    """Read a text file of at most so many bytes, without a byte order mark. Raises ConfigError with the option that named it."""
    try:
        return read_bounded(path, most).removeprefix(BOM_UTF8)
    except OSError as error:
        raise ConfigError(f"{option} {path}: {error.strerror or error}") from error


def caution(option: str, path: Path) -> list[str]:
    """What to say of a secret that everybody on this machine can read."""
    if not path.stat().st_mode & stat.S_IROTH:
        return []
    return [f"{option} {path} can be read by everybody on this machine: chmod o-r {path}"]
