"""Lock that allows one writing process for a folder. It ends with its process and names its holder."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from sl_common.errors import ConfigError
from sl_common.host.files import make_folder, sync_folder, write_atomically
from sl_common.host.text import printable

LOCK = ".lock"  # the file that the operating system locks; empty, never removed
HOLDER = ".lock.holder"  # the holder as JSON; it may have ended


@contextmanager
def sole_writer(folder: Path, what: str, *, keep: bool = True) -> Iterator[None]:
    """Lock a folder until the end of the block or of the process. It is created if it does not exist.

    A folder that was created here and is empty at the end is removed. `keep`: leave the empty lock file in a folder
    that holds other files; if it is removed, three processes that start at the same moment may not all see each other.
    `what` names the option in errors, as in "--out". Raises ConfigError, naming the holder, if another process holds
    the lock, or if the folder cannot be locked.
    """
    try:
        made = not folder.exists()
        make_folder(folder)
    except OSError as error:
        raise ConfigError(f"{what} {folder}: {error.strerror or error}") from error
    try:
        lock = FileLock(folder / LOCK, timeout=0, mode=0o644, thread_local=False)
        lock.acquire()
    except Timeout:
        raise ConfigError(f"{what} {folder}: in use by {_holder(folder)}") from None
    except (OSError, NotImplementedError) as error:
        raise ConfigError(f"{what} {folder}: cannot be locked: {getattr(error, 'strerror', None) or error}") from error
    try:
        with contextlib.suppress(OSError):  # the disk may be full; the lock works without the holder's name
            write_atomically(folder / HOLDER, json.dumps(_this_process()).encode() + b"\n")
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder / HOLDER).unlink(missing_ok=True)
            if not keep:
                (folder / LOCK).unlink(missing_ok=True)
            if made:
                remove_held(folder)
        lock.release()


def remove_held(folder: Path) -> None:
    """Remove a folder locked by this process and its lock files, unless it holds other files. Raises OSError."""
    if not {path.name for path in folder.iterdir()} <= {HOLDER, LOCK}:
        return
    for name in (HOLDER, LOCK):
        (folder / name).unlink(missing_ok=True)
    folder.rmdir()
    sync_folder(folder.parent)


def _this_process() -> dict[str, object]:
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": since}


def _holder(folder: Path) -> str:
    try:
        said = json.loads((folder / HOLDER).read_text(encoding="utf-8"))
        return printable(f"process {said['pid']} on {said['host']} since {said['since']}")
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
