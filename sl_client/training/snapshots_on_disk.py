"""A client's snapshots on disk (`--state DIR`), from which a new process continues at the server's checkpoint."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path

from sl_common.client.snapshots import Snapshots
from sl_common.errors import ConfigError, DataError
from sl_common.host.files import make_folder, remove_parts, sync_folder, write_atomically
from sl_common.training.segment import Tree
from sl_common.tree import dumps, loads

_LAST = 0  # in place of a checkpoint's number: the state after the last wave
_SNAPSHOTS = "snapshot-*.tree"
_HASH = 16  # characters
_RUN = f"{'?' * _HASH}-{'?' * _HASH}"  # a run's folder: hash of the client, hash of the run
KEPT_RUNS = 16  # folders of one client
KEPT_FOLDERS = 256  # folders of runs in all: a server may also give a client other names


class StateFolders:
    """The folders under `--state` that this process has locked until `close`, so that no other process writes there.

    A server can invent runs, so at most `KEPT_RUNS` folders of one client are kept and `KEPT_FOLDERS` in all, those
    used last. A folder that another process has locked stays.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._locked: dict[Path, tuple[str, contextlib.ExitStack]] = {}  # folder -> its run, and its lock
        self._has_warned = False

    def lock_name(self, server: str, client: str) -> None:
        """Lock this client's name at this server, before the server is reached.

        A second process would replace the first there. Raises ConfigError if another process has locked it.
        """
        if self._folder is not None and client:
            self._lock(self._folder / _hashed(f"name/{server}/{client}"), "")

    def find(self, run: str, client: str, warn: Callable[[str], None]) -> Snapshots:
        """Lock this run's folder in place of another run's, and return its snapshots as `find_snapshots` does.

        Raises ConfigError if another process has locked it.
        """
        if self._folder is not None:
            where = _run_folder(self._folder, run, client)
            self._lock(where, run)
            remove_parts(where)
            for other in [one for one, (of_run, _) in self._locked.items() if of_run and one != where]:
                self._release(other)
            removed = _make_room(self._folder, where)
            if removed and not self._has_warned:
                self._has_warned = True
                runs = "run that was" if removed == 1 else "runs that were"
                warn(
                    f"--state {self._folder}: removed {removed} {runs} used longest ago; "
                    f"{KEPT_RUNS} of a client are kept"
                )
        return find_snapshots(self._folder, run, client, warn)

    def forget(self, run: str) -> None:
        """Remove the snapshots of a run that is over; `close` removes its folder."""
        for where in [where for where, (of_run, _) in self._locked.items() if run and of_run == run]:
            with contextlib.suppress(OSError):
                _clear(where)

    def close(self) -> None:
        """Unlock the folders, and remove the empty ones."""
        for where in list(self._locked):
            self._release(where)

    def _lock(self, where: Path, run: str) -> None:
        from sl_common.host.locks import sole_writer  # not loaded without --state

        if where not in self._locked:
            lock = contextlib.ExitStack()
            lock.enter_context(sole_writer(where, "--state"))
            self._locked[where] = run, lock

    def _release(self, where: Path) -> None:
        from sl_common.host.locks import remove_held

        _, lock = self._locked.pop(where)
        with contextlib.suppress(OSError):
            remove_held(where)
        lock.close()


def _make_room(folder: Path, current: Path) -> int:
    """Remove the folders used longest ago, as far as possible; return how many were removed."""
    used_at = {where: _used_at(where) for where in folder.glob(_RUN) if where != current}
    newest_first = sorted(used_at, key=lambda where: used_at[where], reverse=True)
    own = [where for where in newest_first if where.name[:_HASH] == current.name[:_HASH]]
    return sum(_remove(where) for where in {*own[KEPT_RUNS - 1 :], *newest_first[KEPT_FOLDERS - 1 :]})


def _used_at(where: Path) -> int:
    try:
        return where.stat().st_mtime_ns
    except OSError:
        return 0


def _clear(where: Path) -> None:
    for path in where.glob(_SNAPSHOTS):
        path.unlink()


def _remove(where: Path) -> bool:
    """Remove a run's folder.

    Return False if it stays, because another process has locked it or other files are in it.
    """
    from sl_common.host.locks import remove_held, sole_writer

    if where.is_symlink():
        return False
    try:
        with sole_writer(where, "--state"):
            _clear(where)
            remove_parts(where)
            remove_held(where)
    except (ConfigError, OSError):
        return False
    return not where.exists()


def find_snapshots(folder: Path | None, run: str, client: str, warn: Callable[[str], None]) -> Snapshots:
    """Return the snapshots that an earlier process of this client left in this run; new ones go to the same folder.

    Without a folder they stay in memory. Raises ConfigError if the folder cannot be used. A snapshot that cannot be
    written later causes a warning and does not stop the training.
    """
    if folder is None:
        return Snapshots(run)
    where = _run_folder(folder, run, client)
    try:
        make_folder(where)
    except OSError as error:
        raise ConfigError(f"--state {folder}: {error.strerror or error}") from error
    saver, found = SnapshotWriter(where, warn), _read(where, warn)
    last = found.pop(_LAST, None)
    return Snapshots(run, found, last, save=saver.save, drop=saver.drop, save_last=saver.save_last)


def _hashed(what: str) -> str:
    return hashlib.sha256(what.encode()).hexdigest()[:_HASH]


def _run_folder(folder: Path, run: str, client: str) -> Path:
    return folder / f"{_hashed(client)}-{_hashed(f'{run}/{client}')}"


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


class SnapshotWriter:
    """Writes snapshots, each of them whole and durable or not at all.

    Law: the state after the last wave belongs to the newest snapshot. If that snapshot could not be written, neither is
    kept: a server that goes back to its checkpoint would otherwise continue with a state of another time.
    """

    def __init__(self, where: Path, warn: Callable[[str], None]) -> None:
        self._where, self._warn = where, warn
        self._failed = False  # the newest snapshot could not be written

    def save(self, number: int, tree: Tree) -> None:
        """Write the state before a wave."""
        self._failed = not self._write(number, tree)
        if self._failed:
            self.drop(_LAST)

    def save_last(self, tree: Tree) -> None:
        """Write the state after a wave."""
        if not self._failed and not self._write(_LAST, tree):
            self.drop(_LAST)

    def drop(self, number: int) -> None:
        """Remove a snapshot, durably."""
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
            self._warn(f"cannot write {path} ({error.strerror or error}); a restarted process would start from nothing")
            return False
        return True
