"""How a command begins and ends: its output made safe, every way out told and given its exit code."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from sl_common.errors import CutlayerError
from sl_common.exits import exit_code
from sl_common.host import log, output
from sl_common.host.text import printable_lines

BROKEN_PIPE = 141  # as a shell says of a program that SIGPIPE ended
_SOON_S = 3.0  # in which a thread may well end by itself
_WAITS = "all is done, but threads that are not this program's go on, and the process ends with them:"
_HELP = {"--help", "--version"}
_TRUE = {"1", "true", "t", "yes", "y", "on"}

LogLevel = Annotated[
    log.Level,
    typer.Option(
        "--log-level",
        help="Least severity that is shown; above info there are neither bar nor summary.",
        envvar="SL_LOG_LEVEL",
    ),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Show warnings and errors only: --log-level warning.", envvar="SL_QUIET")
]

JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object a line instead of text.", envvar="SL_JSON")]


def level_of(level: log.Level, *, quiet: bool) -> log.Level:
    """The stricter of the two options."""
    return max(level, log.Level.WARNING, key=lambda one: one.number) if quiet else level


def wants_json(arguments: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Whether a command line asks for JSON lines, also one that cannot be parsed."""
    return "--json" in arguments or environment.get("SL_JSON", "").lower() in _TRUE


def fail(error: CutlayerError) -> NoReturn:
    """Say what is wrong and exit with its code."""
    raise SystemExit(_told(str(error), exit_code(error)))


def _told(text: str, code: int, **fields: Any) -> int:
    """Say why a command ends: a line on standard error, or if JSON was asked for a JSON line on standard output. A person whose
    terminal shows only standard error reads it there as well."""
    output.drain()
    text = printable_lines(text)
    as_json = wants_json(sys.argv[1:], os.environ)
    if as_json:
        line = log.json_line("error", "error", {"text": text, "code": code} | fields)
        stream = output.results()
        if stream is None or "stdout" in output.dropped_output():
            stream = sys.stderr
        with contextlib.suppress(output.OutputFailed):
            stream.write(line + "\n")
    if not as_json or (sys.stderr is not None and sys.stderr.isatty() and not (stream and stream.isatty())):
        Console(stderr=True, highlight=False, soft_wrap=True).print(Text(f"error: {text}"), style="red")
    return code


def run_command(app: Callable[..., Any]) -> NoReturn:
    """Run a Typer application as this process."""
    output.hold_descriptors()
    as_json = wants_json(sys.argv[1:], os.environ)
    output.install(log.as_json_too() if as_json and not _HELP & {*sys.argv} else None)
    with contextlib.suppress(OSError):  # the folder may have been removed
        sys.path.append(str(Path.cwd()))  # where a user's own model or data lies
    if as_json:
        threading.excepthook = lambda args: _crashed(args.exc_type, args.exc_value, args.exc_traceback)
    try:
        code = _invoked(app, as_json=as_json)
    except output.OutputFailed as error:  # of a command that is not a run
        code = _unheard(error)
    finally:
        _watch_the_end()
    raise SystemExit(code)


def _watch_the_end() -> None:
    """Say whom Python waits for before this process ends, if it takes long: threads that a user's code began."""
    begun = [one for one in threading.enumerate() if one is not threading.current_thread() and not one.daemon]

    def say() -> None:
        names = ", ".join(repr(one.name) for one in begun if one.is_alive())
        if names and wants_json(sys.argv[1:], os.environ):
            log.say_on_stderr("warning", "warning", {"text": f"{_WAITS} {names}"})
        elif names and sys.stderr is not None:
            sys.stderr.write(f"warning: {_WAITS} {names}\n")

    if begun:
        timer = threading.Timer(_SOON_S, say)
        timer.daemon = True
        timer.start()


def _invoked(app: Callable[..., Any], *, as_json: bool) -> int:
    try:
        found = app(standalone_mode=not as_json)
    except CutlayerError as error:
        return _told(str(error), exit_code(error))
    except output.OutputFailed:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:  # a path that nobody can follow, or may look at
            return _told(f"{error.filename}: {error.strerror or error}", 1)
        if not as_json:
            raise
        usage = getattr(error, "format_message", None)  # Typer's own errors, of options that it cannot parse
        if usage is not None:
            return _told(usage(), int(getattr(error, "exit_code", 2)))
        _crashed(type(error), error, error.__traceback__)
        return 1
    return found if isinstance(found, int) else 0


def _crashed(kind: type[BaseException], error: BaseException | None, where: TracebackType | None) -> None:
    text = "".join(traceback.format_exception_only(kind, error)).strip()
    _told(f"internal error: {text}", 1, traceback="".join(traceback.format_exception(kind, error, where)))


def _unheard(error: output.OutputFailed) -> int:
    """A reader that went away wants nothing more; a full disk is a failure."""
    if error.number == errno.EPIPE:
        return BROKEN_PIPE
    sys.stderr.write(f"error: the output cannot be written: {error}\n")
    return 1
