"""A client's snapshots on disk, so that a killed process can go on where its run's checkpoint was (`--state DIR`)."""

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

_LAST = 0  # in place of a checkpoint's number: after the last wave
_SNAPSHOTS = "snapshot-*.tree"
_HASH = 16  # characters
_RUN = f"{'?' * _HASH}-{'?' * _HASH}"  # folders of runs: whose, and which
KEPT_RUNS = 16  # of one client, whose folders are kept
FOLDERS = 256  # of runs, in all: a server may give other names, too


class Past:
    """The folders under `--state` that this process holds, until `close` or its end: no other process may write there.

    A server can think up runs. At most `RUNS` runs' folders of one client are kept, and `FOLDERS` of all, those that were used last; one
    that another process holds is left alone.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._held: dict[Path, tuple[str, contextlib.ExitStack]] = {}  # folder -> its run, and its lock
        self._told = False

    def hold_name(self, server: str, client: str) -> None:
        """Hold this client's name at this server, before the server hears it: a second process would replace the first there.

        Raises ConfigError if another process has it.
        """
        if self._folder is not None and client:
            self._hold(self._folder / _hashed(f"name/{server}/{client}"), "")

    def find(self, run: str, client: str, warn: Callable[[str], None]) -> Snapshots:
        """As `find_past`, in a folder that is held from now on, in place of another run's.

        Raises ConfigError if another process has it.
        """
        if self._folder is not None:
            where = _of_run(self._folder, run, client)
            self._hold(where, run)
            remove_parts(where)
            for other in [one for one, (held, _) in self._held.items() if held and one != where]:
                self._release(other)
            removed = _make_room(self._folder, where)
            if removed and not self._told:
                self._told = True
                runs = "run that was" if removed == 1 else "runs that were"
                warn(
                    f"--state {self._folder}: removed {removed} {runs} used longest ago; {KEPT_RUNS} of a client are kept"
                )
        return find_past(self._folder, run, client, warn)

    def forget(self, run: str) -> None:
        """This run is over: what was kept of it goes. Its folder goes with `close`."""
        for where in [where for where, (held, _) in self._held.items() if run and held == run]:
            with contextlib.suppress(OSError):
                _clear(where)

    def close(self) -> None:
        """Let go of the folders; those with nothing in them are removed."""
        for where in list(self._held):
            self._release(where)

    def _hold(self, where: Path, run: str) -> None:
        from sl_common.host.locks import sole_writer  # of no use without --state

        if where not in self._held:
            lock = contextlib.ExitStack()
            lock.enter_context(sole_writer(where, "--state"))
            self._held[where] = run, lock

    def _release(self, where: Path) -> None:
        from sl_common.host.locks import remove_held

        _, lock = self._held.pop(where)
        with contextlib.suppress(OSError):
            remove_held(where)
        lock.close()


def _make_room(folder: Path, current: Path) -> int:
    """Remove what was used longest ago, as far as that works; how many folders."""
    used_at = {where: _used_at(where) for where in folder.glob(_RUN) if where != current}
    newest_first = sorted(used_at, key=lambda where: used_at[where], reverse=True)
    own = [where for where in newest_first if where.name[:_HASH] == current.name[:_HASH]]
    return sum(_remove(where) for where in {*own[KEPT_RUNS - 1 :], *newest_first[FOLDERS - 1 :]})


def _used_at(where: Path) -> int:
    try:
        return where.stat().st_mtime_ns
    except OSError:
        return 0


def _clear(where: Path) -> None:
    for path in where.glob(_SNAPSHOTS):
        path.unlink()


def _remove(where: Path) -> bool:
    """Whether a run's folder is gone now; it stays if another process has it, or if something else is in it."""
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


def find_past(folder: Path | None, run: str, client: str, warn: Callable[[str], None]) -> Snapshots:
    """What a former process left of this client in this run, and where this one will keep its own; in memory if no folder is given.

    Raises ConfigError if the folder cannot be used. A snapshot that cannot be written later costs a warning, not the training.
    """
    if folder is None:
        return Snapshots(run)
    where = _of_run(folder, run, client)
    try:
        make_folder(where)
    except OSError as error:
        raise ConfigError(f"--state {folder}: {error.strerror or error}") from error
    saver, found = _Saver(where, warn), _read(where, warn)
    last = found.pop(_LAST, None)
    return Snapshots(run, found, last, save=saver.save, drop=saver.drop, save_last=saver.save_last)


def _hashed(what: str) -> str:
    return hashlib.sha256(what.encode()).hexdigest()[:_HASH]


def _of_run(folder: Path, run: str, client: str) -> Path:
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
