"""A codec in a few words, for tables: its kind, its numbers, and whatever else is not the default."""

from __future__ import annotations

from sl_common.value import Value


def words(codec: Value) -> str:
    """`mask r=0.99 b=2`, `deflate of float8`."""
    said = []
    for name, value in codec:
        field = type(codec).model_fields[name]
        if name == "kind":
            said.append(str(value))
        elif isinstance(value, Value):
            said.append(f"{name} {words(value)}")
        elif value != field.default or (
            isinstance(value, int | float) and not isinstance(value, bool) and name != "level"
        ):
            said.append(f"{name}={str(value).lower() if isinstance(value, bool) else value}")
    return " ".join(said)
