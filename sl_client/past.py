"""A client's snapshots on disk, so that a killed process can go on where its run's checkpoint was (`--state DIR`)."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path

from sl_common.errors import ConfigError, DataError
from sl_common.host.files import make_folder, remove_parts, sync_folder, write_atomically
from sl_common.segment import Tree
from sl_common.snapshots import Snapshots
from sl_common.tree import dumps, loads

_LAST = 0  # in place of a checkpoint's number: after the last wave
_SNAPSHOTS = "snapshot-*.tree"


class Past:
    """The folders under `--state` that this process holds, until `close` or its end: no other process may write there."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._held: dict[Path, str] = {}  # folder -> its run
        self._locks = contextlib.ExitStack()

    def hold_name(self, server: str, client: str) -> None:
        """Hold this client's name at this server, before the server hears it: a second process would replace the first there.

        Raises ConfigError if another process has it.
        """
        if self._folder is not None and client:
            self._hold(_named(self._folder, f"name/{server}/{client}"), "")

    def find(self, run: str, client: str, warn: Callable[[str], None]) -> Snapshots:
        """As `find_past`, in a folder that is held from now on. Raises ConfigError if another process has it."""
        if self._folder is not None:
            where = _named(self._folder, f"{run}/{client}")
            self._hold(where, run)
            remove_parts(where)
        return find_past(self._folder, run, client, warn)

    def forget(self, run: str) -> None:
        """This run is over: what was kept of it goes. Its folder goes with `close`."""
        for where in [where for where, held in self._held.items() if run and held == run]:
            with contextlib.suppress(OSError):
                for path in where.glob(_SNAPSHOTS):
                    path.unlink()

    def close(self) -> None:
        """Let go of the folders; those with nothing in them are removed."""
        from sl_common.host.locks import remove_held

        for where in self._held:
            with contextlib.suppress(OSError):
                remove_held(where)
        self._held.clear()
        self._locks.close()

    def _hold(self, where: Path, run: str) -> None:
        from sl_common.host.locks import sole_writer  # of no use without --state

        if where not in self._held:
            self._locks.enter_context(sole_writer(where, "--state"))
            self._held[where] = run


def find_past(folder: Path | None, run: str, client: str, warn: Callable[[str], None]) -> Snapshots:
    """What a former process left of this client in this run, and where this one will keep its own; in memory if no folder is given.

    Raises ConfigError if the folder cannot be used. A snapshot that cannot be written later costs a warning, not the training.
    """
    if folder is None:
        return Snapshots(run)
    where = _named(folder, f"{run}/{client}")
    try:
        make_folder(where)
    except OSError as error:
        raise ConfigError(f"--state {folder}: {error.strerror or error}") from error
    saver, found = _Saver(where, warn), _read(where, warn)
    last = found.pop(_LAST, None)
    return Snapshots(run, found, last, save=saver.save, drop=saver.drop, save_last=saver.save_last)


def _named(folder: Path, what: str) -> Path:
    return folder / hashlib.sha256(what.encode()).hexdigest()[:16]


def _path(where: Path, number: int) -> Path:
    return where / f"snapshot-{number:08d}.tree"


def _read(where: Path, warn: Callable[[str], None]) -> dict[int, Tree]:
    found = {}
    for path in sorted(where.glob(_SNAPSHOTS)):
        try:
            found[int(path.stem.rpartition("-")[2])] = loads(path.read_bytes())
        except (OSError, DataError, ValueError) as error:
            warn(f"{path}: {error}; left out")
    return found


class _Saver:
    """Writes snapshots, each whole and durable or not at all.

    Law: what is there after the last wave follows the newest snapshot. If that could not be written, neither is kept: a server that goes
    back to its checkpoint would take what this client has for what it had then.
    """

    def __init__(self, where: Path, warn: Callable[[str], None]) -> None:
        self._where, self._warn = where, warn
        self._behind = False  # the newest snapshot could not be written

    def save(self, number: int, tree: Tree) -> None:
        """Of the beginning of a wave."""
        self._behind = not self._write(number, tree)
        if self._behind:
            self.drop(_LAST)

    def save_last(self, tree: Tree) -> None:
        """Of the end of a wave."""
        if not self._behind and not self._write(_LAST, tree):
            self.drop(_LAST)

    def drop(self, number: int) -> None:
        """Remove one, durably."""
        path = _path(self._where, number)
        try:
            path.unlink(missing_ok=True)
            sync_folder(self._where)
        except OSError as error:
            self._warn(f"cannot remove {path} ({error.strerror or error})")

    def _write(self, number: int, tree: Tree) -> bool:
        path = _path(self._where, number)
        try:
            write_atomically(path, dumps(tree))
        except OSError as error:
            self._warn(f"cannot write {path} ({error.strerror or error}); a restart of this process would begin anew")
            return False
        return True
