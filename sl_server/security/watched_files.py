"""Values read from files, and read again when these change: a renewed certificate must not end a run."""

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
    """Holds the result of `read`, which raises ConfigError.

    If a later read fails, the last good value stays, and the failure is reported once.
    """

    def __init__(self, files: Sequence[Path], read: Callable[[], T]) -> None:
        self._files = files
        self._read = read
        self._warn: Callable[[str], None] = lambda _text: None
        self._seen = self._stamps()  # taken before reading, so that a change meanwhile is read again
        self.current = read()
        self.version = 0  # number of times that the files were read again

    def attach(self, warn: Callable[[str], None]) -> None:
        """Set the function that receives warnings from now on."""
        self._warn = warn

    def renew(self) -> bool:
        """Read again if a file has changed; return True if the value is new. Callable from any thread."""
        stamps = self._stamps()
        if stamps == self._seen:
            return False
        self._seen = stamps
        try:
            self.current = self._read()
        except ConfigError as error:
            if is_spent(error):  # out of descriptors: try again next time
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
    """Read a text file of at most so many bytes, without a byte order mark. Raises ConfigError with the option that
    named it."""
    try:
        return read_bounded(path, most).removeprefix(BOM_UTF8)
    except OSError as error:
        raise ConfigError(f"{option} {path}: {error.strerror or error}") from error


def caution(option: str, path: Path) -> list[str]:
    """Return a warning if everybody on this machine can read a secret, else nothing."""
    if not path.stat().st_mode & stat.S_IROTH:
        return []
    return [f"{option} {path} can be read by everybody on this machine: chmod o-r {path}"]
