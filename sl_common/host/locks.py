"""One writer for a folder: a lock that ends with its process, and says who holds it."""

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

LOCK = ".lock"  # what the operating system locks; empty, and never removed
HOLDER = ".lock.holder"  # who holds it, as JSON; may be that of a process that is gone


@contextmanager
def sole_writer(folder: Path, what: str, *, keep: bool = True) -> Iterator[None]:
    """Hold a folder, made if it is not there, until the end of the block or of the process.

    A folder that was made here and has nothing in it at the end is removed.
    `keep`: leave the empty file of the lock in a folder that holds other files; where that is removed, three processes that come within
    one moment may not all see each other. `what` names the option or use in errors, as in "--out". Raises ConfigError, naming the holder, if another process has it, or if it
    cannot be locked.
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
        with contextlib.suppress(OSError):  # a full disk: the lock holds without its name
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
    """Remove a folder that this process holds, with its lock, unless something else is in it. Raises OSError."""
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
