"""Valid things made slightly wrong: bytes, protobuf fields and text, all drawn from one seeded generator.

Now and then one is made to cost: numbers that go on, lengths that lie, messages within messages, one thing said half a million times.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

NUMBERS = (0, 1, 2, 3, 7, 64, 255, 256, 65535, 2**20, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1)
WORDS = ("", "x", "identity", "topk", "lower", "head", "../x", "\x1b[2J", "ä" * 40, "x" * 5000, "\x00")
_INTEGERS = {
    FieldDescriptor.CPPTYPE_UINT64: 2**64 - 1,
    FieldDescriptor.CPPTYPE_UINT32: 2**32 - 1,
    FieldDescriptor.CPPTYPE_INT64: 2**63 - 1,
    FieldDescriptor.CPPTYPE_INT32: 2**31 - 1,
    FieldDescriptor.CPPTYPE_ENUM: 2**31 - 1,
}


LENGTHS = (9, 10, 11, 64, 1000)
HUGE = (1 << 14, 1 << 17, 1 << 18, 1 << 20)
SMALLEST = (b"", b"\x1a\x00", b"\xa0\x06\x00", b"\x08\x01", b"\x1a\x03\xa0\x06\x00")  # of a protobuf message's contents


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def swollen(rng: random.Random) -> bytes:
    """What costs a careless reader of bytes more than it cost to send."""
    many = rng.choice(HUGE) if rng.random() < 0.25 else rng.choice(LENGTHS)
    tag = bytes([rng.randrange(1, 20) << 3 & 0x7F | rng.choice((0, 2, 2))])
    match rng.randrange(6):
        case 0:  # a number, or a length, that goes on
            return tag + rng.choice((b"\xff", b"\x80")) * many + rng.choice((b"", b"\x01", b"\x7f"))
        case 1:  # a length that lies
            return tag + _varint(rng.choice(NUMBERS)) + bytes(rng.choice((0, 1, 100)))
        case 2:  # groups in groups
            return b"\x0b" * many + rng.choice((b"", b"\x0c" * many))
        case 3:  # messages in messages
            data = b""
            for _ in range(min(many, 200)):
                data = tag[:0] + bytes([tag[0] & 0x78 | 2]) + _varint(len(data)) + data
            return data
        case 4:  # one field again and again
            content = rng.choice(SMALLEST)
            one = bytes([tag[0] & 0x78 | 2]) + _varint(len(content)) + content
            return one * (many // len(one) + 1)
        case _:  # a header whose list has nothing in it, again and again
            content = rng.choice(SMALLEST)
            one = bytes([rng.choice((3, 6, 7, 9, 10)) << 3 | 2]) + _varint(len(content)) + content
            many_of_them = one * (many // len(one) + 1)
            return bytes([rng.randrange(3, 14) << 3 | 2]) + _varint(len(many_of_them)) + many_of_them


def mutated(data: bytes, rng: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """With one to four bytes or stretches of bytes changed, lost, said twice, swapped for another's, or cut off."""
    out = bytearray(data)
    if rng.random() < 0.08:
        at = rng.choice((0, len(out), rng.randrange(len(out) + 1)))
        out[at:at] = swollen(rng)
        if rng.random() < 0.7:  # and nothing else, or it is refused for that
            return bytes(out)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(out) + 1)
        until = min(len(out), at + rng.choice((0, 1, 1, 2, 4, 16, 200)))
        match rng.randrange(8):
            case 0 | 1 if out:
                out[at % len(out)] ^= 1 << rng.randrange(8)
            case 2:
                out[at:until] = rng.randbytes(rng.choice((0, 1, 2, 4, 8)))
            case 3:
                del out[at:until]
            case 4:
                out[at:at] = out[at:until] * rng.choice((1, 2, 50))
            case 5:
                out[at:until] = rng.choice(NUMBERS).to_bytes(8, "little")[: rng.choice((1, 2, 4, 8))]
            case 6 if others:
                other = rng.choice(others)
                start = rng.randrange(len(other) + 1)
                out[at:until] = other[start : start + rng.choice((1, 8, 64))]
            case _ if rng.random() < 0.3:
                del out[at:]
    return bytes(out)


def misfiled(message: Message, rng: random.Random) -> None:
    """One field of a message, or of a message within it, becomes another value of its type; lists grow and shrink."""
    while True:
        fields = list(message.DESCRIPTOR.fields)
        present = [field for field, _ in message.ListFields()]
        if not fields:
            return  # a message that says all by being there
        field = rng.choice(present if present and rng.random() < 0.7 else fields)
        if field.cpp_type != FieldDescriptor.CPPTYPE_MESSAGE:
            _set(message, field, rng)
            return
        if _many(field):
            values = getattr(message, field.name)
            if not values or rng.random() < 0.3:
                _resize(values, rng)
                return
            message = rng.choice(list(values))
        else:
            if rng.random() < 0.1:
                message.ClearField(field.name)
                return
            message = getattr(message, field.name)
            message.SetInParent()


def _many(field: FieldDescriptor) -> bool:
    repeated = field.is_repeated
    return bool(repeated() if callable(repeated) else repeated)


def _resize(values: Any, rng: random.Random) -> None:
    if values and rng.random() < 0.5:
        del values[rng.randrange(len(values))]
        return
    for _ in range(rng.choice((1, 2, 100))):
        values.add()


def _set(message: Message, field: FieldDescriptor, rng: random.Random) -> None:
    if not _many(field):
        setattr(message, field.name, _value(field, rng, getattr(message, field.name)))
        return
    values = getattr(message, field.name)
    if values and rng.random() < 0.3:
        del values[rng.randrange(len(values))]
    elif values and rng.random() < 0.5:
        values[rng.randrange(len(values))] = _value(field, rng, values[0])
    else:
        values.extend(_value(field, rng, None) for _ in range(rng.choice((1, 2, 100))))


def _value(field: FieldDescriptor, rng: random.Random, old: Any) -> Any:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
            return mutated(old or b"", rng)
        case FieldDescriptor.CPPTYPE_STRING:
            return rng.choice(WORDS)
        case FieldDescriptor.CPPTYPE_BOOL:
            return not old
        case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
            return rng.choice((0.0, -1.0, 1e308, float("inf"), float("nan"), -0.0))
        case kind:
            most = _INTEGERS[kind]
            near = (old or 0) + rng.choice((-1, 1, 2))
            return max(0, min(most, rng.choice((near, near, rng.choice(NUMBERS)))))


VALUES = (
    *(
        "0",
        "-1",
        "1",
        "2",
        "1e400",
        "nan",
        "-0.5",
        "1e-300",
        "true",
        '""',
        '"x"',
        '"average"',
        "[]",
        "[[]]",
        "[1, -2]",
        "{}",
    ),
    *(
        '{ kind = "x" }',
        '{ kind = "all" }',
        "{ kind = 3 }",
        "99999999999999999999999",
        '"""',
        "1979-05-27",
        "'\x01'",
        '"\\uD800"',
    ),
)


def swollen_text(rng: random.Random) -> str:
    """What costs a careless reader of JSON or TOML more than it cost to write."""
    many = rng.choice((1 << 14, 100_000, 300_000)) if rng.random() < 0.2 else rng.choice((100, 2000, 5000))
    what = rng.choice(("9", "[", '{"a":', "{a=", "a.", '"\\u0061', "0,", "-", " ", "x", "é", "[[a]]\n", "1e9", "_1"))
    text = what * (many // len(what))
    keys = "".join(f'"k{n}": {n}, ' for n in range(many // 15))
    return rng.choice((text, text, f"[{text}]", f'"{text}"', f"{{{keys}}}", "{" + keys.replace(":", " =") + "}"))


def swollen_tree(tree: dict[str, Any], rng: random.Random) -> None:
    """One value, or a table somewhere, becomes more than anybody needs."""
    node, many = tree, rng.choice((40, 300, 3000, 20_000))
    while (below := [value for value in node.values() if isinstance(value, dict)]) and rng.random() < 0.7:
        node = rng.choice(below)
    key = rng.choice(list(node) or ["x"])
    match rng.randrange(5):
        case 0:
            node.update((f"{key}{n}", n) for n in range(many))
        case 1:
            node[key] = list(range(many))
        case 2:
            deep: Any = 1
            for _ in range(min(many, 900)):
                deep = rng.choice(([deep], {key: deep}))
            node[key] = deep
        case 3:
            node[key] = 10 ** min(many, 4000)
        case _:
            node[key] = rng.choice(("x", "é", "average, ")) * many


def rewritten(text: str, rng: random.Random) -> str:
    """A TOML text with values, keys, lines or single characters changed."""
    lines = text.splitlines()
    if rng.random() < 0.04:
        at = rng.randrange(len(lines) + 1)
        key = lines[at].partition("=")[0] if at < len(lines) else ""
        lines.insert(at, rng.choice((f"{key}= {swollen_text(rng)}", swollen_text(rng))))
        return "\n".join(lines)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(lines) + 1)
        line = lines[at] if at < len(lines) else ""
        key, equals, value = line.partition("=")
        match rng.randrange(7):
            case 0 | 1 if equals:
                lines[at] = f"{key}= {rng.choice(VALUES)}"
            case 2 if value:
                start = rng.randrange(len(value))
                lines[at] = f"{key}={value[:start]}{rng.choice(VALUES)}{value[start + rng.randrange(4) :]}"
            case 3 if key:
                start = rng.randrange(len(key))
                lines[at] = key[:start] + rng.choice('.x[]" =#') + key[start + 1 :] + equals + value
            case 4:
                lines[at : at + 1] = []
            case 5:
                lines.insert(at, rng.choice(lines) if lines else "")
            case _:
                lines.insert(
                    at, rng.choice(("[run]", "[x.y.z]", "[[data]]", "server.limits = {", "\x00", "é" * 99, "[" * 300))
                )
    return "\n".join(lines)
