"""Checkpoints as files: each is written completely or not at all, two are kept, the newest undamaged one is found."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from sl_common.errors import ConfigError, DataError
from sl_common.host.files import sync_folder, write_atomically
from sl_common.training.segment import Tree
from sl_common.tree import dumps, loads

KEPT_CHECKPOINTS = 2
_NAME = "checkpoint-{:08d}.tree"


class Checkpoints:
    """The checkpoints of one run, in its directory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._used: Path | None = None  # the checkpoint that the run resumed from

    def save(self, number: int, tree: Tree) -> None:
        """Write a checkpoint durably, then remove all but the newest few. Raises OSError, with the older ones still
        there."""
        write_atomically(self._folder / _NAME.format(number), dumps(tree))
        for old in self._found()[:-KEPT_CHECKPOINTS]:
            with contextlib.suppress(OSError):
                old.unlink()

    def newest(self, warn: Callable[[str], None], check: Callable[[Tree], None] = lambda _tree: None) -> Tree | None:
        """Return the newest checkpoint that is complete and fits its run, or None if there is none. Damaged ones are
        skipped with a warning.

        `check` raises DataError for a complete checkpoint that the run cannot resume from. Raises ConfigError if there
        are checkpoints and none of them can be used.
        """
        found, why = self._found(), ""
        for path in reversed(found):
            try:
                tree = loads(path.read_bytes())
                check(tree)
            except (OSError, DataError) as error:
                why = str(error)
            else:
                self._used = path
                return tree
            warn(f"{path}: {why}; going back to an older checkpoint")
        if found:
            raise ConfigError(
                f"--resume {self._folder}: none of its {len(found)} checkpoints could be read and gone on from: {why}"
            )
        return None

    def forget_newer(self) -> None:
        """Remove the checkpoints that `newest` skipped: the run goes on from before them.

        Raises ConfigError.
        """
        newer = [] if self._used is None else [path for path in self._found() if path > self._used]
        try:
            for path in newer:
                path.unlink()
            if newer:
                sync_folder(self._folder)
        except OSError as error:
            raise ConfigError(f"--resume {self._folder}: {error.filename or ''}: {error.strerror or error}") from error

    def _found(self) -> list[Path]:
        return sorted(self._folder.glob("checkpoint-*.tree"))
