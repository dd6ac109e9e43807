"""The user's own data set: `package.module:function`, called as `function(root)`."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TypeVar

from sl_common.errors import DataError
from sl_common.imports import load_function

T = TypeVar("T")


def call(name: str, root: Path | None, allowed: Collection[str] | None, expected: type[T]) -> T:
    """What the function returns; raises ConfigError if it may not be imported, DataError if it is not an `expected`.

    What the function itself raises passes unchanged: its traceback is what its author needs.
    """
    found = load_function(name, allowed, "data.name", positional=1)(root)
    if not isinstance(found, expected):
        raise DataError(
            f"data.name = {name!r}: returned a {type(found).__name__}, not a {expected.__module__}.{expected.__name__}"
        )
    return found
