"""Digests of the coordinator's messages and weights, so that two computations of the same events can be compared.

Law: a digest depends on values, names, dtypes and shapes alone, never on time, memory or order of computation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from torch import Tensor

from sl_common.messages.events import Advanced, MessageDigest
from sl_common.messages.training import ToClient
from sl_common.tensors import raw_bytes
from sl_server.core.coordinator import Coordinator
from sl_server.core.outbox import Turn

_MAX_IN_CLEAR = 40  # characters; a longer value is written as its digest
_DIGEST = 8  # bytes


class AdvanceDigests:
    """Makes the log entry for each turn of one coordinator."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    def of(self, turn: Turn) -> Advanced:
        """Return the entry for one turn, with all weights where it ended a wave or a round."""
        said = tuple(said_of(client, message) for client, message in turn.messages)
        return Advanced(said=said, weights=self._weights() if turn.merged else {})

    def _weights(self) -> dict[str, str]:
        states = self._coordinator.weights()
        return {f"{part}/{name}": tensor_digest(t) for part, state in states.items() for name, t in state.items()}


def said_of(client: str, message: ToClient) -> MessageDigest:
    """Return one message in a form that can be compared."""
    return MessageDigest(client=client, kind=type(message).__name__.lower(), fields=dict(fields_of(message)))


def fields_of(message: Any) -> Iterator[tuple[str, str]]:
    """Yield every field: its name, and its value in short; a tensor as its digest."""
    for field in fields(message):
        if field.name != "packed":
            yield from _named(field.name, getattr(message, field.name))


def _named(name: str, value: Any) -> Iterator[tuple[str, str]]:
    match value:
        case Tensor():
            yield name, tensor_digest(value)
        case Mapping():
            for key, below in value.items():
                yield from _named(f"{name}/{key}", below)
        case _:
            text = repr(value)
            yield (
                name,
                text if len(text) <= _MAX_IN_CLEAR else hashlib.blake2b(text.encode(), digest_size=_DIGEST).hexdigest(),
            )


def tensor_digest(tensor: Tensor) -> str:
    """Return dtype and shape in clear, and 16 hexadecimal digits over the bytes."""
    own = tensor.detach().cpu()
    found = hashlib.blake2b(raw_bytes(own), digest_size=_DIGEST).hexdigest()
    return f"{str(own.dtype).removeprefix('torch.')}{list(own.shape)} {found}"


def digest_difference(logged: Mapping[str, str], found: Mapping[str, str]) -> str | None:
    """Return the first name with different values, and both values; None if all agree."""
    for name in [*logged, *(name for name in found if name not in logged)]:
        one, other = logged.get(name, "not there"), found.get(name, "not there")
        if one != other:
            return f"{name} is {other}, the log says {one}"
    return None
