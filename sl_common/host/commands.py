"""Start and end of a command: its output streams are made safe, and every error is reported and gets an exit code."""

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

from sl_common import __version__
from sl_common.errors import CutlayerError
from sl_common.exits import exit_code
from sl_common.host import log, output
from sl_common.host.descriptors import hold_descriptors
from sl_common.host.text import printable_lines

BROKEN_PIPE = 141  # exit code that a shell reports for a program ended by SIGPIPE
_SOON_S = 3.0  # a thread may end by itself within this time
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
    """Return the stricter of the two options."""
    return max(level, log.Level.WARNING, key=lambda one: one.number) if quiet else level


def wants_json(arguments: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Return True if a command line asks for JSON lines, even if it cannot be parsed."""
    return "--json" in arguments or environment.get("SL_JSON", "").lower() in _TRUE


def fail(error: CutlayerError) -> NoReturn:
    """Report the error and exit with its code."""
    raise SystemExit(_report(str(error), exit_code(error)))


def _report(text: str, code: int, **fields: Any) -> int:
    """Report why a command ends, and return its exit code.

    The report is a line on standard error or, with --json, a JSON line on standard output. If only standard error is a
    terminal, it is also shown there.
    """
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


def make_app(name: str, text: str) -> typer.Typer:
    """Return the Typer application of a command, with --version and `text` as its help; callers add their commands."""
    app = typer.Typer(
        name=name,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
        help=text,
    )
    app.callback()(_root)
    return app


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cutlayer {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Read the options that stand before a command."""


def run_command(app: Callable[..., Any]) -> NoReturn:
    """Run a Typer application and end the process with its exit code."""
    hold_descriptors()
    as_json = wants_json(sys.argv[1:], os.environ)
    output.install(log.as_json_too() if as_json and not _HELP & {*sys.argv} else None)
    with contextlib.suppress(OSError):  # the folder may have been removed
        sys.path.append(str(Path.cwd()))  # where a user's own model or data lies
    if as_json:
        threading.excepthook = lambda args: _crashed(args.exc_type, args.exc_value, args.exc_traceback)
    try:
        code = _invoked(app, as_json=as_json)
    except output.OutputFailed as error:  # only commands that are not runs raise it
        code = _output_failed(error)
    finally:
        _report_waiting_threads()
    raise SystemExit(code)


def _report_waiting_threads() -> None:
    """Name the threads of a user's code that Python waits for, if they keep this process from ending."""
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
        return _report(str(error), exit_code(error))
    except output.OutputFailed:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:  # a path that nobody can follow, or may look at
            return _report(f"{error.filename}: {error.strerror or error}", 1)
        if not as_json:
            raise
        usage = getattr(error, "format_message", None)  # Typer's errors for options that it cannot parse
        if usage is not None:
            return _report(usage(), int(getattr(error, "exit_code", 2)))
        _crashed(type(error), error, error.__traceback__)
        return 1
    return found if isinstance(found, int) else 0


def _crashed(kind: type[BaseException], error: BaseException | None, where: TracebackType | None) -> None:
    text = "".join(traceback.format_exception_only(kind, error)).strip()
    _report(f"internal error: {text}", 1, traceback="".join(traceback.format_exception(kind, error, where)))


def _output_failed(error: output.OutputFailed) -> int:
    """Return the exit code after output failed: a closed pipe is normal, a full disk is an error."""
    if error.number == errno.EPIPE:
        return BROKEN_PIPE
    sys.stderr.write(f"error: the output cannot be written: {error}\n")
    return 1
