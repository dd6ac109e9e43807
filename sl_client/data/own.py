"""The user's own data set: `package.module:function`, called as `function(root)`."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sl_common.aside import settings_kept
from sl_common.errors import CutlayerError, DataError
from sl_common.imports import load_function

T = TypeVar("T")


def call_function(name: str, root: Path | None, allowed: Collection[str] | None, expected: type[T]) -> T:
    """Call the function and return its value, an instance of `expected`.

    Raises ConfigError if it may not be imported, DataError if it raises (with the line of the user's code) or returns
    another type.
    """
    with _as_it_was():
        function = load_function(name, allowed, "data.name", positional=1)
    found = asked(name, function, root)
    if not isinstance(found, expected):
        raise DataError(
            f"data.name = {name!r}: returned a {type(found).__name__}, not a {expected.__module__}.{expected.__name__}"
        )
    return found


def asked(name: str, function: Callable[[Any], Any], argument: object) -> Any:
    """Return the result of a user's function. Raises as `call_function` does.

    A call of sys.exit ends no process: the server that waits for this client would never be told.
    """
    try:
        with _as_it_was():
            return function(argument)
    except CutlayerError:
        raise
    except (Exception, SystemExit) as error:
        *_, last = traceback.extract_tb(error.__traceback__)[1:] or traceback.extract_tb(error.__traceback__)
        where = f"{last.filename}, line {last.lineno}: {last.line}"
        raise DataError(f"data.name = {name!r}: raised {type(error).__name__}: {error!s:.300} ({where})") from error


@contextmanager
def _as_it_was() -> Iterator[None]:
    """Restore the working folder and the settings of torch afterwards, whatever the user's code changed."""
    try:
        folder = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        folder = -1
    try:
        with settings_kept():
            yield
    finally:
        if folder >= 0:
            os.fchdir(folder)
            os.close(folder)
