"""The user's own code, named `package.module:function`.

Imported only from packages that the machine's owner allowed.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Collection
from typing import Any

from sl_common.errors import ConfigError


def is_user_code(name: str) -> bool:
    """Return True for `package.module:function`, False for a built-in name such as `cnn`."""
    return ":" in name


def load_function(
    name: str, allowed: Collection[str] | None, key: str, *, takes: tuple[str, ...] = (), positional: int = 0
) -> Callable[..., Any]:
    """Import `package.module:function` and return the function.

    `allowed` lists the packages that may be imported (`None`: any, for the author of the configuration). Only functions
    that are defined in one of them are accepted: a module's own imports, such as `shutil.rmtree`, are not part of its
    owner's offer. `takes` lists parameters that the function must have by name, `positional` is the number of arguments
    it is called with. `key` is the configuration key for error messages. Raise ConfigError if the package is not
    allowed, cannot be imported or has no such function.
    """
    module_name, _, attribute = name.partition(":")
    package = module_name.partition(".")[0]
    if allowed is not None and not _within(module_name, allowed):
        known = ", ".join(sorted(allowed)) or "none"
        raise ConfigError(
            f"{key} = {name!r}: this device imports code only from allowed packages ({known}); start it with --allow "
            f"{package}"
        )
    parts = module_name.split(".")
    if not attribute.isidentifier() or not all(p.isidentifier() for p in parts) or parts[-1] == "__main__":
        raise ConfigError(f"{key} = {name!r}: write it as package.module:function")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # whatever the module does when it is imported
        why = f"it calls sys.exit({error.code!r:.80})" if isinstance(error, SystemExit) else error
        raise ConfigError(f"{key} = {name!r}: cannot import {module_name!r} here: {why}") from error
    try:
        function = getattr(module, attribute)
    except AttributeError as error:
        raise ConfigError(f"{key} = {name!r}: module {module_name!r} has no {attribute!r}") from error
    except (Exception, SystemExit) as error:  # a module may have a __getattr__ of its own
        raise ConfigError(f"{key} = {name!r}: {module_name!r} does not give {attribute!r}: {error!r:.300}") from error
    if not callable(function):
        raise ConfigError(f"{key} = {name!r}: {attribute!r} is a {type(function).__name__}, not a function")
    if allowed is not None:
        _check_defined(function, allowed, f"{key} = {name!r}")
    _check_signature(function, takes, positional, f"{key} = {name!r}")
    return function  # type: ignore[no-any-return]


def _within(module_name: object, allowed: Collection[str]) -> bool:
    return isinstance(module_name, str) and any(module_name == a or module_name.startswith(a + ".") for a in allowed)


def _check_defined(function: Any, allowed: Collection[str], what: str) -> None:
    """Raise ConfigError unless it is a function written in an allowed package, with all functions that it wraps."""
    layers = [function]
    while (below := getattr(layers[-1], "__wrapped__", None)) is not None and len(layers) < 32:
        layers.append(below)
    if not inspect.isfunction(layers[-1]):
        raise ConfigError(f"{what}: a {type(layers[-1]).__name__}, and this device calls only functions")
    for layer in layers:
        if not _within(getattr(layer, "__module__", None), allowed):
            raise ConfigError(
                f"{what}: defined in {getattr(layer, '__module__', None)!r}, and this device calls only functions "
                f"defined in allowed packages ({', '.join(sorted(allowed))})"
            )


def _check_signature(function: Callable[..., Any], takes: tuple[str, ...], positional: int, what: str) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some functions written in C
        raise ConfigError(f"{what}: its parameters are unknown, expected {_expected(takes, positional)}") from None
    named = {p.name for p in signature.parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if missing := [one for one in takes if one not in named]:
        raise ConfigError(f"{what}: takes {signature}, which lacks {missing}; expected {_expected(takes, positional)}")
    if positional:
        try:
            signature.bind(*range(positional))
        except TypeError as error:
            raise ConfigError(f"{what}: takes {signature}, expected {_expected(takes, positional)}: {error}") from error


def _expected(takes: tuple[str, ...], positional: int) -> str:
    return f"parameters named {' and '.join(takes)}" if takes else f"{positional} positional argument"
