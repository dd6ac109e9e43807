"""Progress reports for both commands: a thread that reports every few seconds, rates, bars, and units for people."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections import deque
from collections.abc import Callable

from rich import progress as rich
from rich.console import Console
from rich.text import Text

from sl_common.host.log import Level
from sl_common.host.output import OutputFailed

EVERY_S = 9.0  # so that a line comes at least every 10 s
_WINDOW_S = 10.0  # time over which a rate is measured


class Beat:
    """Calls `say` every few seconds from its own thread, between `start` and `stop`."""

    def __init__(self, say: Callable[[], object], every_s: float = EVERY_S) -> None:
        self._say, self._every_s = say, every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def start(self) -> None:
        """Start; a second call does nothing."""
        if self._thread.ident is None:
            self._thread.start()

    def stop(self) -> None:
        """Stop calling."""
        self._over.set()

    def _run(self) -> None:
        with contextlib.suppress(OutputFailed):  # the command ends with this error at its own next output
            while not self._over.wait(self._every_s):
                self._say()


class Seldom:
    """Filters repeated texts: shows the 1st, 2nd, 4th, … 64th, then every 64th (10 minutes)."""

    def __init__(self) -> None:
        self._words, self._count = "", 0

    def lets(self, words: str) -> bool:
        """Return True if the text should be shown now."""
        self._words, self._count = words, self._count + 1 if words == self._words else 1
        return self._count % 64 == 0 or self._count & (self._count - 1) == 0


class Rate:
    """Growth of a count per second, over the last seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, float]] = deque()

    def at(self, count: float) -> float:
        """Record the count and return its growth per second."""
        now = self._clock()
        if not self._seen or now - self._seen[-1][0] >= 0.2 * _WINDOW_S:
            self._seen.append((now, count))
        while len(self._seen) > 2 and now - self._seen[1][0] > _WINDOW_S:
            self._seen.popleft()
        began, before = self._seen[0]
        return max(0.0, count - before) / (now - began) if now > began else 0.0


class ComputedColumn(rich.ProgressColumn):
    """Column of a progress bar whose text is computed when it is drawn."""

    max_refresh = 0.5

    def __init__(self, text: Callable[[], str]) -> None:
        super().__init__()
        self._text = text

    def render(self, _task: rich.Task) -> Text:
        """Return the text."""
        return Text(self._text())


def make_bar(wire: Callable[[], str], console: Console) -> rich.Progress:
    """Return a progress bar with the task field `loss`; `wire` returns a text about the traffic."""
    return rich.Progress(
        rich.TextColumn("[bold]{task.description}"),
        rich.BarColumn(bar_width=20),
        rich.MofNCompleteColumn(),
        rich.TextColumn("{task.fields[loss]}"),
        ComputedColumn(wire),
        rich.TimeElapsedColumn(),
        rich.TextColumn("ETA"),
        rich.TimeRemainingColumn(),
        console=console,
        transient=True,
    )


def wants_bar(level: Level, *, as_json: bool) -> bool:
    """Return True if output goes to a terminal and a bar should be shown."""
    terminal = sys.stdout is not None and sys.stdout.isatty()
    return terminal and not as_json and level.number <= Level.INFO.number


def size(nbytes: float) -> str:
    """Return a number of bytes as text: 1.5 kB, 12.0 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000 or unit == "GB":
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    raise AssertionError


def rate(bytes_per_s: float) -> str:
    """Return a rate as text, in MB/s."""
    return f"{bytes_per_s / 1e6:.2f} MB/s"


def duration(seconds: float) -> str:
    """Return a duration as text: 42 s, 12 min, 3 h 05 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
