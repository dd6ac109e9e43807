"""Atomic and durable file operations. All files that others may read at any time are written here."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PART = ".part"  # suffix of the name of an incomplete file
MAX_PAPER = 4 << 20  # bytes of certificates, tokens or lists of revoked ones
# Bytes of a private key: RSA of 16,384 bits has 13,000, and what is longer takes a library long to refuse.
MAX_KEY_FILE = 32 << 10


def write_atomically(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Replace a file: readers see the old file or the new one, never a part of one. Durable when this returns.

    The bytes are written under a random name that must not exist (no link is followed), and renamed. `mode`:
    permissions of the new file before the umask. Raises OSError; the old file is then unchanged and nothing is left
    behind.
    """
    with _part(path, data, mode) as part:
        part.replace(path)
    sync_folder(path.parent)


def create_atomically(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Do as `write_atomically`, but raise FileExistsError if the name exists, even as a broken link."""
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


_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)  # errors of file systems without hard links


@contextmanager
def _part(path: Path, data: bytes, mode: int) -> Iterator[Path]:
    """Write the bytes durably under a temporary name, which is removed after an OSError."""
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
            part.unlink(missing_ok=True)  # the disk may be full
        raise


def read_bounded(path: Path, most: int) -> bytes:
    """Return the content of a file of at most `most` bytes. Raises OSError, with EFBIG if it is larger."""
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"more than {most} bytes", str(path))
    return data


def sync_folder(folder: Path) -> None:
    """Make created, renamed and removed names in a folder durable. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_file(path: Path) -> None:
    """Make the content of a file durable, whoever wrote it. Raises OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Create a folder and its parents durably, unless they exist. Raises OSError."""
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for one in made:
        sync_folder(one.parent)


def remove_parts(folder: Path) -> None:
    """Remove the incomplete files of killed writers from a folder that nobody writes to now."""
    for part in folder.glob(f".*{PART}"):
        with contextlib.suppress(OSError):
            part.unlink()
