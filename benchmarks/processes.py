"""Processes that a benchmark starts: JSON lines out of them, and the certainty that none of them outlives it."""

from __future__ import annotations

import contextlib
import json
import queue
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parent.parent
Line = dict[str, Any]


class BenchmarkFailed(Exception):
    """A process ended badly, or did not say in time what it had to say."""


class Process:
    """A running process and the JSON objects it prints, one a line."""

    def __init__(
        self,
        command: Sequence[str],
        on_line: Callable[[Line], None] | None = None,
        stderr: IO[str] | None = None,
    ) -> None:
        self.name = " ".join(Path(part).name for part in command[:4])
        self._popen = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr, text=True)
        self._lines: queue.SimpleQueue[Line | None] = queue.SimpleQueue()
        self._on_line = on_line
        assert self._popen.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self._popen.stdout,), daemon=True)
        self._reader.start()

    def _read(self, stdout: IO[str]) -> None:
        with stdout:
            for text in stdout:
                with contextlib.suppress(json.JSONDecodeError):
                    line = json.loads(text)
                    if self._on_line is not None:
                        self._on_line(line)
                    self._lines.put(line)
        self._lines.put(None)

    def line(self, key: str, limit_s: float) -> Line:
        """The next line that has `key`; raises BenchmarkFailed if there is none within `limit_s`."""
        until = time.monotonic() + limit_s
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                raise BenchmarkFailed(f"{self.name}: said nothing with {key!r} for {limit_s:g} s") from None
            if line is None:
                raise BenchmarkFailed(f"{self.name}: ended with {self._popen.wait()} before it said {key!r}")
            if key in line:
                return line

    def finish(self, limit_s: float) -> None:
        """Wait for its end; raises BenchmarkFailed unless it comes within `limit_s` and is a good one."""
        try:
            code = self._popen.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise BenchmarkFailed(f"{self.name}: did not end within {limit_s:g} s") from None
        self._reader.join(limit_s)
        if code:
            raise BenchmarkFailed(f"{self.name}: ended with {code}")

    @property
    def pid(self) -> int:
        """Its number."""
        return self._popen.pid

    def cpu_s(self) -> float:
        """User and system seconds that it has used so far, of all its threads, to the nanosecond (Linux).

        Its CPU clock by clock_getcpuclockid(3), which Python has for threads only: /proc counts in ticks of 10 ms.
        """
        return time.clock_gettime(~self.pid << 3 | 2)

    def peak_kb(self) -> int:
        """High-water mark of its resident memory (Linux)."""
        return self.status_kb("VmHWM")

    def status_kb(self, field: str) -> int:
        """A line of its status in /proc; 0 once it has ended (Linux)."""
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{self._popen.pid}/status").read_text().splitlines():
                if line.startswith(field + ":"):
                    return int(line.split()[1])
        return 0

    def kill(self) -> None:
        """With no warning, and wait until it is gone."""
        self._popen.kill()
        self._popen.wait(10)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._popen.send_signal(number)

    def end(self) -> None:
        """End it if it still runs, by force if it must be."""
        for stop in (self._popen.terminate, self._popen.kill):
            if self._popen.poll() is None:
                stop()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._popen.wait(3)
        self._reader.join(3)


@contextlib.contextmanager
def started(
    command: Sequence[str], on_line: Callable[[Line], None] | None = None, stderr: IO[str] | None = None
) -> Iterator[Process]:
    """A process that has ended when the block is left, however it is left."""
    process = Process(command, on_line, stderr)
    try:
        yield process
    finally:
        process.end()


def cost(since_s: float, until_s: float) -> Line:
    """This process's CPU seconds between two readings of its own clock, `time.process_time`; and KB of memory at most."""
    peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"cpu_s": until_s - since_s, "peak_kb": peak_kb}


def module(name: str, *args: object) -> list[str]:
    """The command that runs one of our modules with this Python."""
    return [sys.executable, "-m", f"benchmarks.{name}", *map(str, args)]


def script(name: str, *args: object) -> list[str]:
    """The command that runs a script installed beside this Python."""
    return [str(Path(sys.executable).with_name(name)), *map(str, args)]
