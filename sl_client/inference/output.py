"""What a person sees of predictions: a line for each sample, a bar on a terminal where there are many, or JSON lines."""

from __future__ import annotations

import statistics
import sys
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text
from torch import Tensor

from sl_client.inference.predictor import Prediction
from sl_common.host.devices import described
from sl_common.host.log import CommandLog, Level, json_line, write_line
from sl_common.host.progress import Beat
from sl_common.host.text import MAX_OURS, printable

_MANY = 32  # samples from which a bar is drawn


class Predictions:
    """Prints each sample's class and keeps what the last line needs. The width of the first column is `width`."""

    def __init__(self, *, as_json: bool, width: int, samples: int, level: Level = Level.INFO) -> None:
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
        """So many more than thought."""
        self._total += samples
        self._progress.update(self._task, total=self._total)

    def say(self, event: str, line: str, **fields: Any) -> None:
        """One line, beside the predictions' own."""
        self._log.say(event, printable(line, MAX_OURS), Level.INFO, fields)

    def warn(self, text: str) -> None:
        """Something that a person should know of; on stderr, so that what is piped on stays a table."""
        if self._json:
            self._log.say("warning", text, Level.WARNING, {"text": text})
        elif self._log.shows(Level.WARNING):
            self._beside(f"warning: {text}")

    def _beside(self, line: str) -> None:
        Console(stderr=True, highlight=False, soft_wrap=True).print(Text(printable(line, MAX_OURS)))

    def _tick(self) -> None:
        """Say how many samples were answered; beside the table."""
        if not self._log.shows(Level.INFO):
            return
        fields = {"samples": self._done, "samples_expected": self._total or None, "requests": len(self._ms)}
        if self._json:
            self._log.say("progress", "", Level.INFO, fields)
        else:
            self._beside(f"{self._done:,}{f' of {self._total:,}' if self._total else ''} samples answered")

    def took(self, answer: Prediction) -> None:
        """A batch was answered."""
        self._ms.append(1e3 * answer.seconds)
        self._done += len(answer.scores)
        if self._total > _MANY:
            self._progress.start()
        self._progress.update(self._task, completed=self._done)

    def show(self, names: list[str], answer: Prediction) -> None:
        """The samples of a batch."""
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
        """The last line. `correct`: how many of them were, where that is known; bytes are of the wire, after the greeting.

        `device`: where the lower segment was computed.
        """
        self._progress.stop()
        if not self._done:
            return
        p50, p99 = statistics.median(self._ms), sorted(self._ms)[max(0, -(-99 * len(self._ms) // 100) - 1)]
        fields: dict[str, Any] = {"samples": self._done, "requests": len(self._ms), "bytes_up": up, "bytes_down": down}
        fields["device"] = device
        fields |= {"p50_ms": round(p50, 3), "p99_ms": round(p99, 3)}
        told = ""
        if correct is not None:
            fields |= {"correct": correct, "accuracy": correct / self._done}
            told = f"accuracy {correct / self._done:.2%} of {self._done} held-out samples; "
        self._result(
            f"{told}{self._done} samples in {len(self._ms)} requests, {p50:.1f} ms each (median; 99 % within {p99:.1f} ms), "
            f"{up:,} bytes up, {down:,} down; lower segment on {described(device)}",
            **fields,
        )

    def _result(self, line: str, **fields: Any) -> None:
        """Print it whatever the level: it is what was asked for."""
        self._print(json_line("summary", "info", fields) if self._json else printable(line, MAX_OURS))

    def stop(self) -> None:
        """Say nothing more by itself, and leave the terminal as it was."""
        self._beat.stop()
        self._progress.stop()
