"""The user's own data set: `package.module:function`, called as `function(root)`."""

from __future__ import annotations

import traceback
from collections.abc import Collection
from pathlib import Path
from typing import TypeVar

from sl_common.errors import CutlayerError, DataError
from sl_common.imports import load_function

T = TypeVar("T")


def call(name: str, root: Path | None, allowed: Collection[str] | None, expected: type[T]) -> T:
    """What the function returns; raises ConfigError if it may not be imported, DataError if it raises, or returns no `expected`.

    A DataError names the line of the user's code that raised, which is what its author needs.
    """
    function = load_function(name, allowed, "data.name", positional=1)
    try:
        found = function(root)
    except CutlayerError:
        raise
    except Exception as error:
        *_, last = traceback.extract_tb(error.__traceback__)[1:] or traceback.extract_tb(error.__traceback__)
        where = f"{last.filename}, line {last.lineno}: {last.line}"
        raise DataError(f"data.name = {name!r}: raised {type(error).__name__}: {error!s:.300} ({where})") from error
    if not isinstance(found, expected):
        raise DataError(
            f"data.name = {name!r}: returned a {type(found).__name__}, not a {expected.__module__}.{expected.__name__}"
        )
    return found
