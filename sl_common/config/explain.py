"""Validation errors in the words of the file that a person wrote: the key, its value, and what is allowed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from sl_common.suggestions import did_you_mean

Path = Sequence[str | int]
MAX_EXPLAINED = 20  # keys; a configuration with more wrong keys has another problem
MAX_SHOWN_KEY = 80  # characters of a key


def explain(error: ValidationError, raw: object, model: type[BaseModel]) -> str:
    """Return one line for each wrong key.

    `raw` is the validated input; it tells real keys from the names of a union's members.
    """
    schema = _schema(model)
    lines: dict[str, list[str]] = {}
    for detail in error.errors(include_url=False)[:MAX_EXPLAINED]:
        subject, message = _line(detail, raw, schema)
        lines.setdefault(subject, []).append(message)
    more = [f"… and {error.error_count() - MAX_EXPLAINED} more"] if error.error_count() > MAX_EXPLAINED else []
    explained = [": ".join(filter(None, (subject, "; or ".join(messages)))) for subject, messages in lines.items()]
    return "\n".join([*explained, *more])


def _line(detail: ErrorDetails, raw: object, schema: Mapping[str, Any]) -> tuple[str, str]:
    """Return (key and value, message)."""
    path, context, value = detail["loc"], detail.get("ctx", {}), detail["input"]
    key = ".".join(_written(path, raw))
    shown = "" if not key or isinstance(value, (Mapping, BaseModel)) else f" = {value!r:.80}"
    match detail["type"]:
        case "extra_forbidden":
            known = _keys_beside(path, schema)
            hint = did_you_mean(path[-1], known, cutoff=0.5)
            others = _kinds_with(path, schema)
            elsewhere = f"; of kind {' or '.join(others)} it is one" if others and not hint else ""
            return key, "unknown key" + (hint or f" (known here: {', '.join(known)})") + elsewhere
        case "union_tag_invalid":
            known = [tag.strip(" '") for tag in context["expected_tags"].split(",")]
            return f"{key}.kind = {context['tag']!r:.80}", _unknown_kind(context["tag"], known)
        case "union_tag_not_found":
            return f"{key}.kind", f"missing, one of: {', '.join(_kinds_at(path, schema))}"
        case "literal_error" if path[-1] == "kind":
            return f"{key}{shown}", _unknown_kind(value, context["expected"].replace("'", "").split(" or "))
        case "missing":
            kind = value.get("kind") if isinstance(value, Mapping) else None
            return key, "missing" + (f": kind {kind!r:.80} needs it" if isinstance(kind, str) else "")
        case "string_type" if isinstance(value, int | float):
            return f"{key}{shown}", f'must be a valid string; in quotes it is one: {key} = "{value}"'
        case "model_type" | "model_attributes_type" | "dict_type":
            kinds, known = _kinds_at(path, schema), _keys_beside([*path, ""], schema)
            words = f", or one of: {', '.join(kinds)}" if kinds else f" ({', '.join(known)})" if known else ""
            return f"{key}{shown}", f"must be a table of keys{words}"
        case _:
            message = detail["msg"].removeprefix("Value error, ")
            return f"{key}{shown}", message.replace("Input should be ", "must be ", 1)


def _unknown_kind(kind: object, known: Sequence[str]) -> str:
    return f"unknown kind{did_you_mean(kind, known)} (known: {', '.join(known)})"


def _written(path: Path, raw: object) -> list[str]:
    """Return the path without the parts that no file has: a table's `kind`, and `int`, `str` for members of a union."""
    written: list[str] = []
    node: Any = raw
    for part in path:
        if isinstance(node, Mapping):
            if part not in node and node.get("kind") == part:
                continue
            node = node.get(part)
        elif isinstance(node, list) and isinstance(part, int):
            node = node[part] if part < len(node) else None
        else:
            break
        written.append(_key(part))
    return written


def _key(part: str | int) -> str:
    """Return a key as text, quoted and cut if a person would not write it so.

    The file may come from another machine.
    """
    text = str(part)
    return text if text.isprintable() and len(text) <= MAX_SHOWN_KEY else f"{text!r:.{MAX_SHOWN_KEY}}"


@cache
def _schema(model: type[BaseModel]) -> Mapping[str, Any]:
    return model.model_json_schema()


# --- the schema, walked along a path in which a union's member stands as its `kind`


def _keys_beside(path: Path, schema: Mapping[str, Any]) -> list[str]:
    """Return the keys that the table of a misspelt key has."""
    return list(_node(path[:-1], schema).get("properties", {}))


def _kinds_with(path: Path, schema: Mapping[str, Any]) -> list[str]:
    """Return the other kinds of a union whose table has the last key of this path; the path's own member lacks it."""
    definitions = schema.get("$defs", {})
    members = list(_options(_node(path[:-2], schema), definitions)) if len(path) > 2 else []
    if not any(path[-2] in _kinds(member) for member in members):
        return []
    having = [member for member in members if path[-1] in member.get("properties", {})]
    return list(dict.fromkeys(kind for member in having for kind in _kinds(member) if kind is not None))


def _kinds_at(path: Path, schema: Mapping[str, Any]) -> list[str]:
    """Return the kinds that a union may have."""
    members = _options(_node(path, schema), schema.get("$defs", {}))
    return sorted({kind for member in members for kind in _kinds(member) if kind is not None})


def _node(path: Path, schema: Mapping[str, Any]) -> Any:
    definitions = schema.get("$defs", {})
    node: Any = schema
    for part in path:
        node = _resolve(node.get("properties", {}).get(part, node), definitions)
        tagged = [option for option in _options(node, definitions) if part in _kinds(option)]
        node = tagged[0] if tagged else node
    return node


def _options(node: Any, definitions: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the members of a union, also of one that may be absent."""
    for option in node.get("oneOf", node.get("anyOf", [])):
        member = _resolve(option, definitions)
        yield member
        yield from _options(member, definitions)


def _kinds(node: Any) -> list[Any]:
    kind = node.get("properties", {}).get("kind", {})
    return [kind.get("const"), *kind.get("enum", [])]


def _resolve(node: Any, definitions: Mapping[str, Any]) -> Any:
    """Return the node that a reference points to.

    Beside a default pydantic before 2.9 writes the reference as the only member of `allOf`.
    """
    if len(node.get("allOf", ())) == 1:
        node = node["allOf"][0]
    return definitions[node["$ref"].rsplit("/", 1)[-1]] if "$ref" in node else node
