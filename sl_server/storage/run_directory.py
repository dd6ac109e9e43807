"""The directory of a run: readable at any moment, whether the run is over or was cut short."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sl_common.config.run_config import RunConfig
from sl_common.errors import ConfigError
from sl_common.holdings import Inputs
from sl_common.host.files import make_folder, remove_parts, sync_folder, write_atomically
from sl_common.messages.facts import BatchEvaluated, Evaluated, Fact, RoundEnded, RunEnded, Trained, WaveBegun
from sl_common.tensors import StateDict
from sl_server.core.coordinator import Coordinator
from sl_server.storage import eventlog, schema
from sl_server.storage.append_only import GrowingFile
from sl_server.storage.inputs import write_inputs
from sl_server.storage.summary import evaluation_fields, summarise
from sl_server.storage.table import Board, RoundTable, row_of
from sl_server.storage.weight_set import put_in_place, write_weights
from sl_server.telemetry.ledger import Ledger

GROWING = ("metrics.jsonl", "metrics.csv", "digests.log")
BOARD_FILES = "events.out.tfevents.*"  # the name that TensorBoard gives its files
EMPTY_FILES: Mapping[str, int] = dict.fromkeys(GROWING, 0)  # lengths in bytes before anything is written


class RunDirectory:
    """Writes the files of one run.

    They are `run.json`, `config.json`, `metrics.jsonl`, `metrics.csv`, `digests.log`, weights as safetensors after
    every evaluation, and `summary.json`. The caller must hold the directory: see `sl_common.host.locks`.
    """

    def __init__(
        self,
        path: Path,
        config: RunConfig,
        ledger: Ledger,
        resumed: Mapping[str, int] | None = None,
        board: Board | None = None,
    ) -> None:
        """Create the directory, or open that of a run to resume, its files cut to the lengths `resumed`.

        Raises ConfigError.
        """
        self.path = path
        self._ledger = ledger
        self._rounds: list[RoundEnded] = []
        self.evaluated: Evaluated | None = None
        self.loss: float | None = None
        self.notes: dict[str, Any] = {}  # further entries of the summary
        self._rounds_over: int | None = None
        self._unwritten = False  # True while the last weights could not be written
        self._inputs: Inputs | None = None  # the last value that was written
        self._refused = False  # True while the last lines could not be written
        try:
            make_folder(path)
            if resumed is not None:
                (path / "summary.json").unlink(missing_ok=True)  # of the failure before
            else:
                if (path / "config.json").exists():
                    raise ConfigError(f"--out {path}: holds a run already; choose another directory, or --resume it")
                schema.write_schema(path)
                write_atomically(path / "config.json", config.model_dump_json(indent=2).encode() + b"\n")
            remove_parts(path)
            put_in_place(path)
            self._files = {name: GrowingFile(path / name, (resumed or EMPTY_FILES).get(name, 0)) for name in GROWING}
            self._table = RoundTable(self._files["metrics.csv"], board)
            sync_folder(path)
        except (OSError, ValueError) as error:
            raise ConfigError(f"--out {path}: {getattr(error, 'strerror', None) or error}") from error
        self._board = board

    def written(self) -> dict[str, int]:
        """Make the growing files durable and return their lengths. Raises OSError.

        A checkpoint holds the lengths; what was written after it is written again after a restart.
        """
        found = {name: file.sync() for name, file in self._files.items()}
        if self._board is not None:
            self._board.sync()
        return found

    @property
    def behind(self) -> bool:
        """True while something waits in memory because the disk did not take it."""
        return self._unwritten or self._refused

    def cut_back(self, lengths: Mapping[str, int]) -> None:
        """Remove everything after these lengths."""
        for name, file in self._files.items():
            file.cut_back(lengths.get(name, 0))
        self._table.begin_again()

    def fact(self, fact: Fact, seconds: float) -> None:
        """Write a fact to the files that record it. Raises OSError; what could not be written is written with a later
        fact."""
        try:
            self._note(fact, seconds)
        finally:
            if not isinstance(fact, Trained | BatchEvaluated):
                self._flush()

    def warn(self, text: str, seconds: float) -> None:
        """Keep a warning that possibly nobody has read. It is in the file after the next fact at the latest."""
        self._line(event="warning", seconds=round(seconds, 3), text=text)

    def _flush(self) -> None:
        """Flush all files, then raise the first OSError."""
        failed = [error for file in self._files.values() if (error := _flushed(file)) is not None]
        self._refused = bool(failed)
        if failed:
            raise failed[0]

    def _note(self, fact: Fact, seconds: float) -> None:
        match fact:
            case Trained():
                self._files["digests.log"].write(
                    f"{fact.client} {fact.round + 1} {fact.wave + 1} {fact.step} {fact.crc32}\n"
                )
            case BatchEvaluated():  # the evaluation as a whole follows
                pass
            case RoundEnded():
                self._round(fact, seconds)
            case Evaluated():
                self.evaluated, self._rounds_over = fact, fact.round + 1
                self._line(event="evaluation", seconds=round(seconds, 3), **evaluation_fields(fact), **self._bytes())
                self._table.evaluated(fact, self._ledger, seconds)
            case _:
                fields = asdict(fact)
                for counted in ("round", "wave", "shard"):  # shown from 1 everywhere
                    if counted in fields:
                        fields[counted] += 1
                self._line(event=_snake(type(fact).__name__), seconds=round(seconds, 3), **fields)
                if isinstance(fact, RunEnded) or (isinstance(fact, WaveBegun) and not fact.evaluate):
                    self._table.flush()

    def _round(self, fact: RoundEnded, seconds: float) -> None:
        self.loss = fact.loss if fact.loss is not None else self.loss
        self._rounds_over = fact.round + 1
        steps, phases = self._ledger.take_phases()
        self._line(
            event="round",
            round=fact.round + 1,
            loss=fact.loss,
            samples=fact.samples,
            clients=fact.clients,
            seconds=round(seconds, 3),
            **self._bytes(),
            timed_steps=steps,
            phases=phases,
        )
        self._table.ended(row_of(fact, self._ledger, seconds, steps, phases))

    def _bytes(self) -> dict[str, Any]:
        """Return the bytes of the run so far."""
        return {"bytes": self._ledger.by_direction("wire"), "payload_bytes": self._ledger.by_direction("payload")}

    def _line(self, **fields: Any) -> None:
        self._files["metrics.jsonl"].write(json.dumps(fields) + "\n")

    def save_weights(self, states: dict[str, StateDict], inputs: Inputs | None = None) -> None:
        """Write `lower.safetensors` and `head.safetensors` (or `head-<shard>.safetensors` where copies differ) as one
        set.

        `inputs.json` is written first if it has changed. Raises OSError.
        """
        self._unwritten = True
        if inputs != self._inputs:
            write_inputs(self.path, inputs)
            self._inputs = inputs
        write_weights(self.path, states, self._rounds_over)
        self._unwritten = False

    def summary(self, coordinator: Coordinator, seconds: float, failure: str | None) -> dict[str, Any]:
        """Return the content of `summary.json`."""
        lost = {name: file.lost for name, file in self._files.items() if file.lost}
        lost_lines = {"lost_lines": lost} if lost else {}
        return (
            summarise(coordinator, self._ledger, self.evaluated, self.loss, seconds, failure) | self.notes | lost_lines
        )

    def discard(self) -> None:
        """Remove the files of a run that could not begin, so that the directory can be used again."""
        self.close()
        begun = (self.path / name for name in ("config.json", schema.RUN_FILE, eventlog.EVENT_LOG, *GROWING))
        for path in (*begun, *self.path.glob(BOARD_FILES)):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # the directory holds other files too
            self.path.rmdir()

    def finish(self, coordinator: Coordinator, seconds: float, failure: str | None = None) -> dict[str, Any]:
        """Write the final weights, then the summary when everything else is durable; return the summary. Raises
        OSError.

        A run that failed keeps the weights of its last evaluation: a head in the middle of a wave fits no lower
        segment.
        """
        if failure is None or not any(self.path.glob("head*.safetensors")):
            self.save_weights(coordinator.weights(), coordinator.agreement.inputs)
        self._table.flush()
        self.written()
        summary = self.summary(coordinator, seconds, failure)
        write_atomically(self.path / "summary.json", json.dumps(summary, indent=2).encode() + b"\n")
        self.close()
        return summary

    def close(self) -> None:
        """Close all files; nothing more is written."""
        for file in self._files.values():
            file.close()
        if self._board is not None:
            self._board.close()


def shorter(folder: Path, lengths: Mapping[str, int]) -> str | None:
    """Return why a checkpoint does not fit a directory, because a growing file is shorter than it was then; None if it
    fits."""
    for name, length in lengths.items():
        path = folder / name
        found = path.stat().st_size if path.exists() else 0
        if name in GROWING and found < length:
            return f"it counts on {length} bytes of {name}, which has {found}"
    return None


def _flushed(file: GrowingFile) -> OSError | None:
    try:
        file.flush()
    except OSError as error:
        return error
    return None


def _snake(name: str) -> str:
    return "".join("_" + c.lower() if c.isupper() else c for c in name).lstrip("_")
