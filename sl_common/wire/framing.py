"""Cuts one encoded message into frames: the header is in the first, the body in chunks of a bounded size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sl_common.codec import Packed
from sl_common.codec.packed import Buffer
from sl_common.messages.training import Gradient, Message, Smashed
from sl_common.wire.accounting import kind_of, tally_of
from sl_common.wire.fields import begun
from sl_common.wire.frame import Frame


class Framing:
    """Cuts messages of one side into frames."""

    def __init__(self, frame: type, chunk_bytes: int) -> None:
        """`frame`: protobuf class of a sent frame. `chunk_bytes`: most bytes of a body in one frame."""
        self._frame: Any = frame
        self._chunk_bytes = chunk_bytes

    def cut(self, message: Message, first: Any, packed: Sequence[Packed], sent: int, ack: int) -> list[Frame]:
        """Return the frames of a message, numbered from `sent` + 1. `first`: the protobuf frame that has the header."""
        kind = kind_of(message)
        labels = packed[0].layout.nbytes if kind == "smashed" else 0
        stable = _is_stable(message)
        frames, carried, total = [], 0, 0
        for one in packed:
            total += one.layout.nbytes
        frame = first
        for pieces in _chunks(packed, self._chunk_bytes):
            sent += 1
            frame.seq, frame.ack = sent, ack
            head = frame.SerializeToString()
            frame = self._frame()
            before = carried
            for piece in pieces:
                carried += len(piece)
            parts: tuple[Buffer, ...] = (begun(head, carried - before), *pieces)
            tally = tally_of(kind, len(parts[0]) + carried - before, min(carried, labels) - min(before, labels))
            joined = parts if stable else (b"".join(parts),)
            frames.append(Frame(seq=sent, pieces=joined, tally=tally, ends=carried == total))
        return frames


def _chunks(packed: Sequence[Packed], size: int) -> Iterator[list[memoryview]]:
    """Yield the body in pieces of at most `size` bytes, each a list of views; one empty piece for an empty body."""
    piece: list[memoryview] = []
    room = size
    for one in packed:
        view = memoryview(one.data)
        while view:
            piece.append(view[:room])
            view = view[room:]
            room -= len(piece[-1])
            if room == 0:
                yield piece
                piece, room = [], size
    if piece or not any(one.layout.nbytes for one in packed):
        yield piece


def _is_stable(message: Message) -> bool:
    """Return True if nobody writes to the message's tensors any more, so that they need not be copied.

    A backward pass still needs the activations of a training batch, and has just made a gradient. The next step writes
    to weights; a user's network with an in-place operation may write to activations that need no gradient.
    """
    return isinstance(message, Gradient) or (isinstance(message, Smashed) and message.needs_grad)
