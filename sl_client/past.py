"""A client's snapshots on disk, so that a killed process can go on where its run's checkpoint was (`--state DIR`)."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from sl_common.errors import ConfigError, DataError
from sl_common.segment import Tree
from sl_common.snapshots import Snapshots
from sl_common.tree import dumps, loads


def find_past(folder: Path | None, run: str, client: str, warn: Callable[[str], None]) -> Snapshots:
    """What a former process left of this client in this run, and where this one will keep its own; in memory if no folder is given.

    Raises ConfigError if the folder cannot be used. A snapshot that cannot be written later costs a warning, not the training.
    """
    if folder is None:
        return Snapshots(run)
    where = folder / hashlib.sha256(f"{run}/{client}".encode()).hexdigest()[:16]
    try:
        where.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--state {folder}: {error.strerror or error}") from error
    saver, found = _Saver(where, warn), _read(where, warn)
    last = found.pop(_LAST, None)
    return Snapshots(
        run,
        found,
        last,
        save=saver,
        drop=lambda number: _path(where, number).unlink(missing_ok=True),
        save_last=lambda tree: saver(_LAST, tree),
    )


_LAST = 0  # in place of a checkpoint's number: after the last wave


def _path(where: Path, number: int) -> Path:
    return where / f"snapshot-{number:08d}.tree"


def _read(where: Path, warn: Callable[[str], None]) -> dict[int, Tree]:
    found = {}
    for path in sorted(where.glob("snapshot-*.tree")):
        try:
            found[int(path.stem.rpartition("-")[2])] = loads(path.read_bytes())
        except (OSError, DataError, ValueError) as error:
            warn(f"{path}: {error}; left out")
    return found


class _Saver:
    """Writes snapshots, atomically."""

    def __init__(self, where: Path, warn: Callable[[str], None]) -> None:
        self._where, self._warn = where, warn

    def __call__(self, number: int, tree: Tree) -> None:
        """Durable when it returns, or a warning."""
        path = _path(self._where, number)
        part = path.with_suffix(".part")
        try:
            with part.open("wb") as file:
                file.write(dumps(tree))
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            self._warn(f"cannot write {path} ({error.strerror or error}); a restart of this process would begin anew")
