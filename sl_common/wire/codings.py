"""Context of each encode and decode in one session: random draws, activations of gradients, and residuals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sl_common.codec import Coding, Link, Packed
from sl_common.messages.inference import Query
from sl_common.messages.training import Aligned, Begin, Done, Gradient, Message, Smashed
from sl_common.seeds import Draw
from sl_common.wire.accounting import WireKind


class Codings:
    """Makes the `Coding` of each message from the messages before it."""

    def __init__(self, link: Link, draw: Draw, residuals: dict[str, Tensor], window: int | None) -> None:
        """`residuals`: errors of earlier encodings of this side by tensor name.

        `window`: most batches that may be unanswered, or None.
        """
        self._link, self._residuals, self._window = link, residuals, window
        self._draw = (*draw, "codec")
        self._likes: dict[int, Tensor] = {}  # step -> activation as the peer decoded it
        self._wave = (0, 0)  # round and wave of the last message that has them

    def of_sent(self, message: Message) -> Coding:
        """Return the context in which a message is encoded."""
        match message:
            case Smashed(round=r, wave=w, step=s, train=train):
                return Coding(training=train, draw=(*self._draw, "z", r, w, s))
            case Query(step=s):
                return Coding(training=False, draw=(*self._draw, "z", s))
            case Gradient(step=step):
                like, draw = self._likes.pop(step, None), (*self._draw, "dz", *self._wave, step)
                return Coding(like=like, draw=draw, name="dz", residuals=self._residuals)
            case Begin(round=r, wave=w) | Done(round=r, wave=w) | Aligned(round=r, wave=w):
                self._wave = (r, w)
                return Coding(draw=(*self._draw, type(message).__name__, r, w), residuals=self._residuals)
            case _:
                return Coding()

    def of_received(self, name: str, header: Any, kind: WireKind) -> Coding:
        """Return the context in which a received message is decoded."""
        like = self._likes.pop(header.step, None) if name == "gradient" else None
        return Coding(like=like, training=kind not in ("eval", "infer"))

    def remember_sent(self, message: Message, packed: Sequence[Packed]) -> None:
        """Keep a sent activation as the peer decodes it, for a gradient codec that needs it."""
        if isinstance(message, Smashed) and message.needs_grad and self._link.down.uses_like:
            self._keep_like(message.step, self._link.up.decode(packed[1], Coding(training=message.train)))

    def remember_received(self, message: Message) -> None:
        """Keep a received activation for a gradient codec that needs it."""
        if isinstance(message, Smashed) and message.needs_grad and self._link.down.uses_like:
            self._keep_like(message.step, message.z)

    def _keep_like(self, step: int, z: Tensor) -> None:
        """Keep at most `window` activations: batches of a wave that this client was late in are never answered."""
        self._likes.pop(step, None)
        while self._window is not None and len(self._likes) >= self._window:
            del self._likes[next(iter(self._likes))]
        self._likes[step] = z
