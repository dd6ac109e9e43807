"""What a law is parametrised over: the members of a union that serves as a registry, also when it has one member only."""

from __future__ import annotations

from typing import Annotated, Any, get_args, get_origin


def members(union: Any) -> tuple[type, ...]:
    """The classes of `A`, `A | B` or `Annotated[A | B, …]`."""
    plain = get_args(union)[0] if get_origin(union) is Annotated else union
    return get_args(plain) or (plain,)
