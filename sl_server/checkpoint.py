"""Checkpoints as files: written whole or not at all, two kept, the newest that is undamaged found again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from sl_common.errors import ConfigError, DataError
from sl_common.host.files import write_atomically
from sl_common.segment import Tree
from sl_common.tree import dumps, loads

KEPT = 2
_NAME = "checkpoint-{:08d}.tree"


class Checkpoints:
    """Those of one run, in its directory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, number: int, tree: Tree) -> None:
        """Durable when it returns; then all but the newest few are removed. Raises OSError, with the older ones still there."""
        write_atomically(self._folder / _NAME.format(number), dumps(tree))
        for old in self._found()[:-KEPT]:
            with contextlib.suppress(OSError):
                old.unlink()

    def newest(self, warn: Callable[[str], None]) -> Tree | None:
        """The newest one that is whole; damaged ones are told and passed over. None if the run had made none.

        Raises ConfigError if there are some and all are damaged.
        """
        found = self._found()
        for path in reversed(found):
            try:
                return loads(path.read_bytes())
            except (OSError, DataError) as error:
                warn(f"{path}: {error}; going back to an older checkpoint")
        if found:
            raise ConfigError(f"--resume {self._folder}: none of its {len(found)} checkpoints could be read")
        return None

    def _found(self) -> list[Path]:
        return sorted(self._folder.glob("checkpoint-*.tree"))
