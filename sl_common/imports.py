"""The user's own code is named `package.module:function` and imported only from packages that this machine's owner allowed."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection
from typing import Any

from sl_common.errors import ConfigError


def is_user_code(name: str) -> bool:
    """True for `package.module:function`, false for one of our own names such as `cnn`."""
    return ":" in name


def load_function(name: str, allowed: Collection[str] | None, key: str) -> Callable[..., Any]:
    """Import `package.module:function`.

    `allowed` holds the packages that may be imported (`None`: any, for the one who wrote the config); `key` is the config key
    to blame. Raises ConfigError if the package is not allowed, cannot be imported or has no such callable.
    """
    module_name, _, attribute = name.partition(":")
    package = module_name.partition(".")[0]
    if allowed is not None and not any(module_name == a or module_name.startswith(a + ".") for a in allowed):
        known = ", ".join(sorted(allowed)) or "none"
        raise ConfigError(
            f"{key} = {name!r}: this device imports code only from allowed packages ({known}); start it with --allow {package}"
        )
    if not attribute or not all(part.isidentifier() for part in module_name.split(".")):
        raise ConfigError(f"{key} = {name!r}: write it as package.module:function")
    try:
        function = getattr(importlib.import_module(module_name), attribute)
    except ImportError as error:
        raise ConfigError(f"{key} = {name!r}: cannot import {module_name!r} here: {error}") from error
    except AttributeError as error:
        raise ConfigError(f"{key} = {name!r}: module {module_name!r} has no {attribute!r}") from error
    if not callable(function):
        raise ConfigError(f"{key} = {name!r}: {attribute!r} is a {type(function).__name__}, not a function")
    return function  # type: ignore[no-any-return]
