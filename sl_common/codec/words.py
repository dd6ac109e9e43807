"""A codec in a few words, for tables: its kind, its numbers, and every other value that is not the default."""

from __future__ import annotations

from sl_common.value import Value


def words(codec: Value) -> str:
    """Return a short description, such as `mask r=0.99 b=2` or `deflate of float8`."""
    parts = []
    for name, value in codec:
        field = type(codec).model_fields[name]
        if name == "kind":
            parts.append(str(value))
        elif isinstance(value, Value):
            parts.append(f"{name} {words(value)}")
        elif value != field.default or (
            isinstance(value, int | float) and not isinstance(value, bool) and name != "level"
        ):
            parts.append(f"{name}={str(value).lower() if isinstance(value, bool) else value}")
    return " ".join(parts)
