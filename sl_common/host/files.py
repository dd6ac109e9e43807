"""Files that are whole whenever they are read: the one place that writes them."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PART = ".part"  # how the name of a file that is not whole yet ends
MAX_PAPER = 4 << 20  # bytes of certificates, tokens or lists of revoked ones
# Bytes of a private key: RSA of 16,384 bits has 13,000, and what is longer takes a library long to refuse.
MAX_KEY_FILE = 32 << 10


def write_atomically(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Replace the file by these bytes: readers see the old file or the new one, never half of one; durable when this returns.

    The bytes are written under a name that nobody can foresee, which must not exist (no link is followed), and renamed. `mode`: the new
    file's permissions before the umask. Raises OSError with the old file as it was and nothing left behind.
    """
    with _part(path, data, mode) as part:
        part.replace(path)
    sync_folder(path.parent)


def create_atomically(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """As `write_atomically`, but raises FileExistsError if anything has this name, a link that leads nowhere included."""
    with _part(path, data, mode) as part:
        try:
            path.hardlink_to(part)
            part.unlink()
        except FileExistsError as error:
            raise FileExistsError(error.errno, error.strerror, str(path)) from error
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if os.path.lexists(path):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
            part.replace(path)
    sync_folder(path.parent)


_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)  # on file systems that have no hard links


@contextmanager
def _part(path: Path, data: bytes, mode: int) -> Iterator[Path]:
    """The bytes under another name, durable; whatever goes wrong then, an OSError leaves nothing of it."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}{PART}")
    try:
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        with open(handle, "wb") as file:  # noqa: PTH123  (a handle, not a path)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield part
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)  # a full disk needs the room
        raise


def read_bounded(path: Path, most: int) -> bytes:
    """The file's bytes, at most so many. Raises OSError, with EFBIG if there are more."""
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"more than {most} bytes", str(path))
    return data


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable: files created, renamed or removed in it. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_file(path: Path) -> None:
    """Make what others wrote to a file durable. Raises OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Create a folder with its parents, durably; nothing happens to one that is there. Raises OSError."""
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for one in made:
        sync_folder(one.parent)


def remove_parts(folder: Path) -> None:
    """Remove what writers that were killed left behind in a folder that nobody writes to now."""
    for part in folder.glob(f".*{PART}"):
        with contextlib.suppress(OSError):
            part.unlink()
