"""Bytes of messages that need not be made: a frame's size depends on the lengths of its numbers, not on its tensors.

Law: every size is that of a frame which an endpoint really made. Of messages whose frames have equal length, only the
first is packed; for the others the endpoints just count on, so that frames sent before and after have the numbers that
they would have had.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace

from sl_common.messages.training import Gradient, Smashed
from sl_common.wire import Endpoint, Frame


class Sizes:
    """Sizes of frames whose tensors all have the same encoded length, as with codec identity."""

    def __init__(self) -> None:
        self._known: dict[Hashable, tuple[Frame, ...]] = {}

    def pass_by(self, message: Smashed | Gradient, sender: Endpoint, receiver: Endpoint) -> tuple[Frame, ...]:
        """Return the frames of a message without their data; both endpoints count as if the message had been sent."""
        lengths = (_length(sender.delivery.sent + 1), _length(sender.delivery.received), *_lengths(message))
        frames = self._known.get(lengths, ())
        if frames and _length(sender.delivery.sent + len(frames)) == lengths[0]:
            sender.delivery.sent += len(frames)
        else:
            frames = tuple(replace(frame, pieces=(b"",)) for frame in sender.pack(message))
            if _length(sender.delivery.sent) == lengths[0]:
                self._known[lengths] = frames
        receiver.delivery.received += len(frames)
        return frames


def _lengths(message: Smashed | Gradient) -> tuple[Hashable, ...]:
    """Return a key that is equal for messages whose header fields have the same lengths."""
    match message:
        case Smashed(step=step, round=r, wave=w, train=train, needs_grad=needs_grad, z=z):
            return ("up", _length(step), _length(r), _length(w), train, needs_grad, z.shape)
        case Gradient(step=step, loss=loss, correct=correct, dz=dz):
            no_loss = loss == 0.0 and str(loss)  # a field that is 0 is left out, but −0 is not
            return ("down", _length(step), no_loss, _length(correct), None if dz is None else dz.shape)


def _length(number: int) -> int:
    """Return the bytes of a varint field's value; a field that is 0 is left out."""
    return (number.bit_length() + 6) // 7
