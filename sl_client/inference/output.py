"""The output of predictions: a line for each sample, a bar on a terminal where there are many, or JSON lines."""

from __future__ import annotations

import statistics
import sys
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text
from torch import Tensor

from sl_client.inference.query import Prediction
from sl_common.host.devices import described
from sl_common.host.log import CommandLog, Level, json_line, write_line
from sl_common.host.progress import Beat
from sl_common.host.text import MAX_OURS, printable

_MANY = 32  # samples; a bar is drawn for more


class Predictions:
    """Prints each sample's class, and collects the numbers for the last line."""

    def __init__(self, *, as_json: bool, width: int, samples: int, level: Level = Level.INFO) -> None:
        """`width`: characters of the first column; `samples`: as many as are expected, 0 if that is not known."""
        self._json, self._width = as_json, width
        self._console = Console(highlight=False, soft_wrap=True)
        self._log = CommandLog("client", as_json=as_json, level=level, show=self._print)
        self._beat = Beat(self._tick)
        self._total, self._done = samples, 0
        self._headed = False
        self._ms: list[float] = []
        terminal = sys.stdout is not None and sys.stdout.isatty()
        bar = terminal and not as_json and self._log.shows(Level.INFO)
        if not bar:
            self._beat.start()
        self._progress = Progress(
            TextColumn("predicting"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not bar,
        )
        self._task = self._progress.add_task("", total=samples)

    def expect(self, samples: int) -> None:
        """Add to the number of expected samples."""
        self._total += samples
        self._progress.update(self._task, total=self._total)

    def say(self, event: str, line: str, **fields: Any) -> None:
        """Report an event, beside the predictions."""
        self._log.say(event, printable(line, MAX_OURS), Level.INFO, fields)

    def warn(self, text: str) -> None:
        """Report something that a person should know, on stderr, so that stdout in a pipe stays a table."""
        if self._json:
            self._log.say("warning", text, Level.WARNING, {"text": text})
        elif self._log.shows(Level.WARNING):
            self._print_stderr(f"warning: {text}")

    def _print_stderr(self, line: str) -> None:
        Console(stderr=True, highlight=False, soft_wrap=True).print(Text(printable(line, MAX_OURS)))

    def _tick(self) -> None:
        """Report how many samples were answered, beside the table."""
        if not self._log.shows(Level.INFO):
            return
        fields = {"samples": self._done, "samples_expected": self._total or None, "requests": len(self._ms)}
        if self._json:
            self._log.say("progress", "", Level.INFO, fields)
        else:
            self._print_stderr(f"{self._done:,}{f' of {self._total:,}' if self._total else ''} samples answered")

    def answered(self, answer: Prediction) -> None:
        """Count the answer to a batch."""
        self._ms.append(1e3 * answer.seconds)
        self._done += len(answer.scores)
        if self._total > _MANY:
            self._progress.start()
        self._progress.update(self._task, completed=self._done)

    def show(self, names: list[str], answer: Prediction) -> None:
        """Print the samples of a batch."""
        ms = 1e3 * answer.seconds
        best, classes = answer.scores.softmax(dim=1).max(dim=1)
        for name, p, label, scores in zip(names, best.tolist(), classes.tolist(), answer.scores, strict=True):
            self._one(name, label, p, ms, scores)

    def _one(self, name: str, label: int, p: float, ms: float, scores: Tensor) -> None:
        if self._json:
            fields = {"file": name, "class": label, "probability": p, "ms": round(ms, 3), "scores": scores.tolist()}
            self._print(json_line("prediction", "info", fields))
            return
        if not self._headed:
            self._print(f"{'file':<{self._width}}  class  probability        ms")
            self._headed = True
        self._print(f"{printable(name):<{self._width}}  {label:>5}  {p:>11.4f}  {ms:>8.2f}")

    def _print(self, line: str) -> None:
        if self._progress.live.is_started:
            self._console.print(Text(line))
        else:
            write_line(line)

    def finish(self, up: int, down: int, device: str, correct: int | None = None) -> None:
        """Print the last line.

        `up` and `down`: bytes on the wire after the greeting; `device`: where the lower segment was computed;
        `correct`: how many samples were classified correctly, where that is known.
        """
        self._progress.stop()
        if not self._done:
            return
        p50, p99 = statistics.median(self._ms), sorted(self._ms)[max(0, -(-99 * len(self._ms) // 100) - 1)]
        fields: dict[str, Any] = {"samples": self._done, "requests": len(self._ms), "bytes_up": up, "bytes_down": down}
        fields["device"] = device
        fields |= {"p50_ms": round(p50, 3), "p99_ms": round(p99, 3)}
        accuracy = ""
        if correct is not None:
            fields |= {"correct": correct, "accuracy": correct / self._done}
            accuracy = f"accuracy {correct / self._done:.2%} of {self._done} held-out samples; "
        self._result(
            f"{accuracy}{self._done} samples in {len(self._ms)} requests, {p50:.1f} ms each "
            f"(median; 99 % within {p99:.1f} ms), {up:,} bytes up, {down:,} down; lower segment on {described(device)}",
            **fields,
        )

    def _result(self, line: str, **fields: Any) -> None:
        """Print the last line at every log level, since it is the result."""
        self._print(json_line("summary", "info", fields) if self._json else printable(line, MAX_OURS))

    def stop(self) -> None:
        """Stop the reports of progress, and leave the terminal as it was."""
        self._beat.stop()
        self._progress.stop()
