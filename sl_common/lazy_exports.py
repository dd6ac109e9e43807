"""Public names of a package, imported at first use (PEP 562).

A package lists the names that other folders may use, without importing all of its modules. So `sl-server simulate`
loads no gRPC, though it uses a module of a package that has others which load it.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any


def lazy_exports(package: str, **names: str) -> tuple[Callable[[str], Any], list[str]]:
    """Return `__getattr__` and `__all__` of a package.

    `module="Name other"` exports both names of its module, `module=""` the module itself. The function raises
    AttributeError, as Python does, for a name that is not listed.
    """
    where = {name: module for module, listed in names.items() for name in listed.split() or [module]}

    def find(name: str) -> Any:
        if name not in where:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = import_module(f"{package}.{where[name]}")
        return getattr(module, name) if names[where[name]] else module

    return find, sorted(where)
