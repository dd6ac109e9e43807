"""The installed commands as processes: their lines as they come, their JSON events, their exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parent.parent  # the package `examples` is imported from the working directory
PATIENCE_S = 90.0  # for what must come at all


def _environment(extra: dict[str, str] | None) -> dict[str, str]:
    """As a person's in a pipe of 80 columns: nothing that the machine or a CI sets for colours, none of our own variables."""
    ours = ("SL_", "GRPC_", "FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS", "CLICOLOR", "TERMINAL_WIDTH", "LINES")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return kept | {"NO_COLOR": "1", "COLUMNS": "80", "PYTHONUNBUFFERED": "1"} | (extra or {})


class Process:
    """A command that runs. Two threads read its output, so that no pipe ever fills."""

    def __init__(self, command: str, *args: object, env: dict[str, str] | None = None, cwd: Path = ROOT) -> None:
        self._process = subprocess.Popen(
            [BIN / command, *map(str, args)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
            env=_environment(env),
        )
        self._began = time.monotonic()
        self.lines: list[str] = []
        self._errors: list[str] = []
        self._news = threading.Condition()
        self._readers = [
            threading.Thread(target=self._read, args=args, daemon=True)
            for args in ((self._process.stdout, self.lines), (self._process.stderr, self._errors))
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, pipe: Iterator[str], into: list[str]) -> None:
        for line in pipe:
            with self._news:
                into.append(line.rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._news.notify_all()

    @property
    def out(self) -> str:
        """Standard output so far."""
        return "\n".join(self.lines)

    @property
    def err(self) -> str:
        """Standard error so far, and what a command says of its end with --json, which is on standard output then."""
        told = [json.loads(line)["text"] for line in list(self.lines) if '"event": "error"' in line]
        return "\n".join([*self._errors, *told])

    @property
    def events(self) -> list[dict]:
        """Standard output so far as JSON, line by line."""
        return [json.loads(line) for line in list(self.lines)]

    def event(self, name: str, **fields: object) -> dict:
        """Wait for an event of this name with these fields."""
        deadline = time.monotonic() + PATIENCE_S
        seen = 0
        while True:
            with self._news:
                while seen == len(self.lines) and self._is_alive(deadline):
                    self._news.wait(0.5)
                news = self.lines[seen:]
            seen += len(news)
            for line in news:
                event = json.loads(line)
                if event["event"] == name and fields.items() <= event.items():
                    return event
            assert news, f"no {name} {fields} came; out:\n{self.out}\nerr:\n{self.err}"

    def _is_alive(self, deadline: float) -> bool:
        return any(reader.is_alive() for reader in self._readers) and time.monotonic() < deadline

    def is_running(self) -> bool:
        """Not ended yet, and not for longer than anything may take."""
        return self._process.poll() is None and time.monotonic() < self._began + PATIENCE_S

    def is_alive(self) -> bool:
        """Not ended yet."""
        return self._process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to this process alone."""
        self._process.send_signal(number)

    def end(self) -> int:
        """Wait for it to end by itself; its exit code."""
        code = self._process.wait(PATIENCE_S)
        for reader in self._readers:
            reader.join(PATIENCE_S)
        return code

    def close(self) -> None:
        """End it if it has not ended."""
        if self._process.poll() is None:
            self._process.kill()
        self.end()
        for pipe in (self._process.stdout, self._process.stderr):
            pipe.close()


@contextmanager
def started(command: str, *args: object, env: dict[str, str] | None = None, cwd: Path = ROOT) -> Iterator[Process]:
    """A process that is gone when the block is left."""
    process = Process(command, *args, env=env, cwd=cwd)
    try:
        yield process
    finally:
        process.close()


def ran(command: str, *args: object, env: dict[str, str] | None = None, cwd: Path = ROOT) -> Process:
    """A process that has ended by itself; `code` says how."""
    with started(command, *args, env=env, cwd=cwd) as process:
        process.code = process.end()
        return process


def ran_all(commands: dict[str, tuple[object, ...]]) -> dict[str, Process]:
    """Many of them, as many at a time as there are cores."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(commands, pool.map(lambda args: ran(*args), commands.values()), strict=True))
