"""A run's numbers as a flat table, one row a round: `metrics.csv` for spreadsheets, and the same rows for TensorBoard.

A row is written when its round is complete, at the latest when the next round begins, so no checkpoint splits a row.
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Mapping
from typing import Protocol

from sl_common.messages.facts import Evaluated, RoundEnded
from sl_common.wire.accounting import WIRE_KINDS
from sl_server.storage.append_only import GrowingFile
from sl_server.telemetry.ledger import Ledger
from sl_server.telemetry.names import PHASES

RoundRow = Mapping[str, float | None]  # column -> value; None: no value in this round

# round (from 1) · mean training loss · held-out data: accuracy (mean, least, greatest over clients), mean loss
_ROUND = ("round", "loss", "accuracy", "accuracy_min", "accuracy_max", "eval_loss")
# samples trained on in this round · clients that finished it · seconds since the first wave began, evaluation included
_SIZE = ("samples", "clients", "seconds")
# bytes on the wire since the run began, evaluation included, by direction and kind; the same tensors as float32
_BYTES = tuple(f"{direction}_{kind}_bytes" for direction in ("up", "down") for kind in WIRE_KINDS)
_BYTES += ("up_payload_bytes", "down_payload_bytes")
# steps of this round that were timed, and the mean seconds of each of their phases
_PHASES = ("timed_steps", *(f"{phase}_seconds" for phase in PHASES))
_UNSHOWN = 4096  # rows kept for a board that cannot be written; metrics.csv has them all
COLUMNS = (*_ROUND, *_SIZE, *_BYTES, *_PHASES)


def row_of(fact: RoundEnded, ledger: Ledger, seconds: float, steps: int, phases: Mapping[str, float]) -> RoundRow:
    """Return the row of a finished round, before its evaluation."""
    return {
        "round": fact.round + 1,
        "loss": fact.loss,
        "samples": fact.samples,
        "clients": fact.clients,
        "timed_steps": steps,
        **{f"{phase}_seconds": mean for phase, mean in phases.items()},
        **_so_far(ledger, seconds),
    }


def evaluated(row: RoundRow, fact: Evaluated, ledger: Ledger, seconds: float) -> RoundRow:
    """Return the same row with the round's evaluation."""
    found = {"accuracy": fact.accuracy, "accuracy_min": fact.lowest, "accuracy_max": fact.highest}
    return {**row, **found, "eval_loss": fact.loss, **_so_far(ledger, seconds)}


def _so_far(ledger: Ledger, seconds: float) -> RoundRow:
    wire = {f"{d}_{kind}_bytes": ledger.wire[d, kind] for d in ("up", "down") for kind in WIRE_KINDS}
    payload = ledger.by_direction("payload")
    return wire | {f"{d}_payload_bytes": sum(payload[d].values()) for d in payload} | {"seconds": round(seconds, 3)}


class Board(Protocol):
    """A second destination for the rows."""

    def add(self, row: RoundRow) -> None:
        """Add one round. Raises OSError."""
        ...

    def back(self, rounds: int) -> None:
        """Remove the rounds after the first `rounds`."""
        ...

    def sync(self) -> None:
        """Make added rows durable. Raises OSError."""
        ...

    def close(self) -> None:
        """Close the board."""
        ...


class RoundTable:
    """Writes rows into an open file, which may hold some already, and to a board if there is one."""

    def __init__(self, file: GrowingFile, board: Board | None = None) -> None:
        self._file = file
        self._board = board
        self._shown = 0  # rows that the board has
        self._unshown: deque[RoundRow] = deque(maxlen=_UNSHOWN)
        self._broken = False  # True: the board must begin again after the rows that it has
        self._pending: RoundRow | None = None
        self._writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        self.begin_again()

    def begin_again(self) -> None:
        """Count the rows in the file, and continue after them."""
        self._pending = None
        lines = self._file.lines()
        if not lines:
            self._writer.writeheader()
        self._unshown.clear()
        self._shown = max(lines - 1, 0)
        if self._board is not None:
            self._board.back(self._shown)

    def ended(self, row: RoundRow) -> None:
        """Take the row of a finished round; its evaluation may follow."""
        self._pending = row

    def evaluated(self, fact: Evaluated, ledger: Ledger, seconds: float) -> None:
        """Add the evaluation to the pending row, and write it."""
        if self._pending is not None:
            self._pending = evaluated(self._pending, fact, ledger, seconds)
        self.flush()

    def flush(self) -> None:
        """Write the pending row: nothing more comes for its round. Raises OSError."""
        row, self._pending = self._pending, None
        if row is None:
            return
        self._writer.writerow({name: "" if value is None else value for name, value in row.items()})
        if self._board is not None:
            self._unshown.append(row)
            self._show(self._board)

    def _show(self, board: Board) -> None:
        """Send the board the rows that it does not have yet, each once. Raises OSError."""
        try:
            if self._broken:
                board.back(self._shown)
                self._broken = False
            while self._unshown:
                board.add(self._unshown[0])
                self._unshown.popleft()
                self._shown += 1
        except OSError:
            self._broken = True
            raise
