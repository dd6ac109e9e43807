"""A tree of plain values and tensors as bytes, and back: the format of snapshots and checkpoints. No pickle.

Layout: MAGIC, SHA-256 of all the rest, a safetensors file whose metadata holds the tree as JSON. In it a tensor is
{"t": name}, bytes are {"b": name}, a dict is {"d": [[key, value], …]} (keys of any plain kind), a tuple {"u": […]}.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from sl_common.errors import DataError

MAGIC = b"SLTREE1\n"
_PLAIN = (bool, int, float, str, type(None))


def dumps(tree: Any) -> bytes:
    """Return a tree as bytes. Raise TypeError for anything but plain values, bytes, tensors and containers of these."""
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_flat(tree, tensors))
    body = save(tensors, metadata={"tree": text})
    return b"".join([MAGIC, hashlib.sha256(body).digest(), body])


def loads(data: bytes) -> Any:
    """Return the tree again. Raise DataError unless these are all the bytes of a tree, unchanged."""
    start = len(MAGIC) + 32
    if data[: len(MAGIC)] != MAGIC:
        raise DataError("not a snapshot of cutlayer's")
    if hashlib.sha256(memoryview(data)[start:]).digest() != data[len(MAGIC) : start]:
        raise DataError(f"a damaged snapshot: its {len(data)} bytes are not those that were written")
    body = data[start:]
    try:
        length = int.from_bytes(body[:8], "little")
        text = json.loads(body[8 : 8 + length])["__metadata__"]["tree"]
        return _deep(json.loads(text), load(body))
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"a snapshot that makes no sense: {type(error).__name__}: {str(error)[:200]}") from error


def _flat(node: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(node, _PLAIN):
        return node
    if isinstance(node, Tensor):
        return {"t": _add(tensors, node.detach().to("cpu", copy=True).contiguous())}
    if isinstance(node, bytes | bytearray | memoryview):
        return {
            "b": _add(tensors, torch.frombuffer(bytearray(node), dtype=torch.uint8) if len(node) else torch.zeros(0))
        }
    if isinstance(node, Mapping):
        return {"d": [[_flat(key, tensors), _flat(value, tensors)] for key, value in node.items()]}
    if isinstance(node, tuple):
        return {"u": [_flat(one, tensors) for one in node]}
    if isinstance(node, list):
        return [_flat(one, tensors) for one in node]
    raise TypeError(f"a snapshot cannot hold {type(node).__name__}")


def _add(tensors: dict[str, Tensor], tensor: Tensor) -> str:
    name = str(len(tensors))
    tensors[name] = tensor
    return name


def _deep(node: Any, tensors: dict[str, Tensor]) -> Any:
    """Return the tree again.

    Each tensor may be in it once; otherwise one of a megabyte, named a thousand times, would take a gigabyte.
    """
    if isinstance(node, list):
        return [_deep(one, tensors) for one in node]
    if not isinstance(node, dict):
        return node
    ((kind, value),) = node.items()
    match kind:
        case "t":
            return tensors.pop(value).clone()  # in its own memory, aligned as any tensor
        case "b":
            return tensors.pop(value).to(torch.uint8).numpy().tobytes()
        case "u":
            return tuple(_deep(one, tensors) for one in value)
        case "d":
            return {_deep(key, tensors): _deep(one, tensors) for key, one in value}
    raise ValueError(f"unknown node {kind!r}")
