"""Log of a command: records of Python's `logging`, shown as text or as JSON, one object a line.

Each record has the name and fields of an event beside its text. All loggers are below `cutlayer`; those of libraries
and of user code are not changed. JSON lines begin with time (UTC, RFC 3339), level, event, run and host.
"""

from __future__ import annotations

import atexit
import json
import logging
import math
import platform
import sys
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, TextIO

from sl_common.host import output
from sl_common.host.printed import Printed
from sl_common.host.text import printable_lines

LOGGER = logging.getLogger("cutlayer")
LOGGER.propagate = False  # a handler of the root logger would show every record again


class Level(StrEnum):
    """Least severity of the records that are shown."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"

    @property
    def number(self) -> int:
        """Number of this level in Python's `logging`."""
        return int(getattr(logging, self.name))


class _Context:
    """Fields that every JSON line of this process has."""

    run: str | None = None
    host = platform.node()


def name_run(name: str | None) -> None:
    """Set the name of the run in JSON lines, once it is known."""
    _Context.run = name


def json_line(event: str, level: str, fields: dict[str, Any]) -> str:
    """Return a JSON line. Numbers that JSON lacks (NaN, infinity) become null."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    line = {"time": now, "level": level, "event": event, "run": _Context.run, "host": _Context.host} | fields
    try:
        return json.dumps(line, allow_nan=False, default=str)
    except ValueError:
        return json.dumps(_finite(line), default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(below) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(below) for below in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class _Lines(logging.Handler):
    """Writes records to standard output, or passes their text to `show`."""

    def __init__(self, *, as_json: bool, show: Callable[[str], None] | None) -> None:
        super().__init__()
        self._json, self._show = as_json, show

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        text = printable_lines(record.getMessage())
        event, fields = getattr(record, "event", "log"), getattr(record, "fields", {"text": text})
        if self._json:
            write_line(json_line(event, record.levelname.lower(), fields))
        elif self._show is not None:
            self._show(text)
        else:
            write_line(text)


def write_line(line: str) -> None:
    """Write a line of this command's own."""
    stream = output.results()
    if stream is not None:
        stream.write(line + "\n")
        stream.flush()


class CommandLog:
    """Log of one command. The newest CommandLog of a process determines the format."""

    def __init__(
        self, name: str, *, as_json: bool = False, level: Level = Level.INFO, show: Callable[[str], None] | None = None
    ) -> None:
        """`name`: logger below `cutlayer`. `show`: receives text lines in place of standard output."""
        self._logger = LOGGER.getChild(name)
        LOGGER.handlers[:] = [one for one in LOGGER.handlers if not isinstance(one, _Lines)]
        LOGGER.addHandler(_Lines(as_json=as_json, show=show))
        LOGGER.setLevel(level.number)

    def shows(self, level: Level) -> bool:
        """Return True if records of this severity are shown."""
        return self._logger.isEnabledFor(level.number)

    def say(self, event: str, text: str, level: Level, fields: dict[str, Any]) -> None:
        """Record one event."""
        self._logger.log(level.number, "%s", text, extra={"event": event, "fields": fields})


def say_on_stderr(event: str, level: str, fields: dict[str, Any]) -> None:
    """Write one JSON line beside this command's own; what cannot be written is dropped."""
    stream = output.stderr()
    if stream is not None:
        stream.write(json_line(event, level, fields) + "\n")


def as_json_too() -> Printed:
    """Return a stream that writes other code's output as JSON lines on standard error, with Python's warnings."""

    def warn(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if file is not None:
            file.write(warnings.formatwarning(message, category, filename, lineno, line))
            return
        say_on_stderr(
            "warning", "warning", {"text": f"{category.__name__}: {message}", "where": f"{filename}:{lineno}"}
        )

    warnings.showwarning = warn
    printed = Printed(lambda line: say_on_stderr("printed", "info", {"text": line}))

    def end() -> None:
        printed.end()
        output.drain()

    atexit.register(end)
    return printed


def keep_going(*, as_json: bool) -> None:
    """Continue this process even if its output fails; the first loss is reported on the other stream."""
    others = {"stdout": "stderr", "stderr": "stdout"}

    def tell(name: str, why: str) -> None:
        stream = "output" if name == "stdout" else "error"
        text = f"standard {stream} cannot be written ({why}): what it would say is dropped; the work goes on"
        line = json_line("output", "warning", {"text": text}) if as_json else f"warning: {text}"
        other = sys.stderr if others[name] == "stderr" else output.results()
        if other is not None:
            other.write(line + "\n")

    output.keep_output_going(tell)


def lost_output() -> str | None:
    """Return a text about dropped output of this process; None if nothing was dropped."""
    lost = output.dropped_output()
    return "; ".join(f"{name}: {count} lines lost ({why})" for name, (count, why) in lost.items()) or None
