"""Scalars for TensorBoard in the run directory: `tensorboard --logdir runs` names each run after its directory.

Needs the package `tensorboard` (the extra `tensorboard`), which nothing else needs.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from sl_common.errors import ConfigError
from sl_common.host.extras import how_to_install
from sl_common.host.files import sync_file
from sl_server.storage.table import COLUMNS, Board, RoundRow
from sl_server.telemetry.names import PHASES

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_TAGS = {"loss": "loss/train", "eval_loss": "loss/held out", "accuracy": "accuracy/held out"}
_TAGS |= {"accuracy_min": "accuracy/least", "accuracy_max": "accuracy/greatest"}
_TAGS |= {f"{phase}_seconds": f"step seconds/{phase}" for phase in PHASES}


def tag_of(column: str) -> str:
    """Return the tag of a column of `metrics.csv` on the board."""
    if column.endswith("_bytes"):
        direction, _, kind = column.removesuffix("_bytes").partition("_")
        return f"bytes {direction}/{kind}"
    return _TAGS.get(column, f"run/{column}")


def open_board(folder: Path) -> Board:
    """Open TensorBoard's files in this folder. Raises ConfigError if its package is missing."""
    try:
        return TensorBoard(folder)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"--tensorboard needs the package tensorboard ({error.name} is missing): {how_to_install('tensorboard')}"
        ) from error


class TensorBoard:
    """Writes every column of `metrics.csv` as a scalar; the step is the round. Raises ModuleNotFoundError without the
    package."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._open = SummaryWriter
        self._folder = folder
        self._writer: SummaryWriter | None = None
        self._added = False  # since the last `sync`

    def back(self, rounds: int) -> None:
        """Begin a new file that tells TensorBoard to drop later rounds."""
        self.close()
        self._writer = self._open(str(self._folder), purge_step=rounds + 1)

    def add(self, row: RoundRow) -> None:
        """Add one round; it is written when this returns."""
        assert self._writer is not None, "the table goes back before it adds"
        self._added = True
        for column in COLUMNS[1:]:
            value = row.get(column)
            if value is not None:
                self._writer.add_scalar(tag_of(column), value, int(row["round"] or 0))
        self._writer.flush()

    def sync(self) -> None:
        """Make the newest file durable; earlier files were closed. Raises OSError."""
        if self._writer is not None and self._added:
            self._writer.flush()
            self._added = False
            for path in sorted(self._folder.glob("events.out.tfevents.*"), key=_age)[-1:]:
                sync_file(path)

    def close(self) -> None:
        """Close the file; data that a full disk did not take is lost."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with contextlib.suppress(OSError):
                writer.close()


def _age(path: Path) -> int:
    return path.stat().st_mtime_ns
