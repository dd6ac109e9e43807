"""One side of a conversation: packs messages into numbered frames and turns received frames into messages.

No socket, no clock.

Law: whatever happens to the streams, the peer receives every packed message exactly once, in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from sl_common.codec import Link
from sl_common.messages.training import Message
from sl_common.proto import split_pb2 as pb
from sl_common.seeds import Draw
from sl_common.wire import translate
from sl_common.wire.accounting import FrameTally, tally_of
from sl_common.wire.bounds import MAX_TENSORS
from sl_common.wire.codings import Codings
from sl_common.wire.delivery import Delivery
from sl_common.wire.frame import CHUNK_BYTES, Frame
from sl_common.wire.framing import Framing
from sl_common.wire.incoming import CallKind, Incoming
from sl_common.wire.timing import Timing


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Received:
    """Result of one received frame: its bytes by kind, and the message if the frame completed it."""

    tally: FrameTally
    message: Message | None = None
    timing: Timing | None = None  # the client's measurements of an earlier step


class Endpoint:
    """Protocol state of one client's session, on the client or on the server. It outlives the streams."""

    def __init__(
        self,
        side: Literal["client", "server"],
        *,
        link: Link,
        limit_bytes: int,
        limit_tensors: int = MAX_TENSORS,
        draw: Draw = (),
        chunk_bytes: int = CHUNK_BYTES,
        call: CallKind = "train",
        window: int | None = None,
    ) -> None:
        """`call`: purpose of the stream; messages of the other purpose are refused.

        `limit_bytes` and `limit_tensors`: bounds on the tensors of one received message, checked before memory is
        allocated.

        `draw`: the run's seed and the client's shard, from which codecs draw random numbers. `window`: the run's
        `client.window`; without it no acknowledgements are required of the peer.
        """
        self._frame: Any = pb.ClientFrame if side == "client" else pb.ServerFrame
        self._peer_frame: Any = pb.ServerFrame if side == "client" else pb.ClientFrame
        self._call = call
        self._framing = Framing(self._frame, chunk_bytes)
        self.delivery = Delivery(self._frame, chunk_bytes)
        self.agree(link, limit_bytes, draw, window=window, limit_tensors=limit_tensors)

    def agree(
        self,
        link: Link,
        limit_bytes: int,
        draw: Draw,
        residuals: dict[str, Tensor] | None = None,
        window: int | None = None,
        *,
        limit_tensors: int = MAX_TENSORS,
    ) -> None:
        """Set the codecs and limits for all later messages. No message may be incomplete at this moment.

        `residuals`: errors of earlier encodings of this side by tensor name, for a codec with feedback. The dict is
        updated in place, so the caller can save and restore it.
        """
        self._link = link
        self.residuals = {} if residuals is None else residuals
        self._codings = Codings(link, draw, self.residuals, window)
        self._incoming = Incoming(self._peer_frame, link, self._call, limit_bytes, limit_tensors)
        self.delivery.agree(window)

    # --- out

    def pack(self, message: Message, *, timing: Timing | None = None) -> list[Frame]:
        """Encode a message once and return its frames to send now; they are also kept for resending.

        On a slow link only some of the frames are returned; `due` returns the others later. Raises Diverged on NaN or
        Inf, which only the codec `identity` carries, and WireError if too many messages are unacknowledged.
        """
        delivery = self.delivery
        delivery.check_room()
        frame = self._frame()
        packed = translate.encode(message, frame, self._link, self._codings.of_sent(message))
        self._codings.remember_sent(message, packed)
        if timing is not None:
            frame.timing.CopyFrom(timing.to_header())
        frames = self._framing.cut(message, frame, packed, delivery.sent, delivery.received)
        return delivery.send(message, frames, packed)

    def due(self, now: float) -> Sequence[Frame]:
        """Return frames to send after one was received at `now` (s): held ones, or a bare acknowledgement."""
        return self.delivery.due(now)

    def acknowledgement(self, *, at_once: bool = False) -> Frame | None:
        """Return a bare acknowledgement if one is due or `at_once` is set, else None. It frees the peer's memory."""
        return self.delivery.acknowledgement(at_once=at_once)

    def resend(self, peer_received: int, *, slow: bool = False) -> list[Frame]:
        """Return the frames that the peer lacks after a break. Raises WireError if its claim is impossible.

        `slow`: the link is known to be slow, so the missing frames are cut into smaller ones with new numbers. After
        the peer has stated `peer_received`, no frame of an earlier stream may therefore be fed on either side.
        """
        return self.delivery.resend(peer_received, slow=slow)

    # --- in

    def feed(self, data: bytes) -> Received:
        """Process one received frame.

        Raises WireError if it is malformed, out of order, too large or not what this run agreed on, Refused if it is a
        refusal.
        """
        incoming, delivery, nbytes = self._incoming, self.delivery, len(data)
        frame, name, chunk = incoming.parse(data)
        delivery.acknowledge(frame.ack)
        if not delivery.is_next(frame.seq):
            return Received(tally=tally_of("control", nbytes))
        labels = incoming.add(frame, name, chunk)
        message = None if incoming.missing else self._finish()
        delivery.receive(nbytes, len(chunk), incoming.missing)
        timing = Timing.from_header(frame.timing) if name in ("smashed", "query") and frame.HasField("timing") else None
        return Received(tally=tally_of(incoming.kind, nbytes, labels), message=message, timing=timing)

    def _finish(self) -> Message:
        incoming, codings, delivery = self._incoming, self._codings, self.delivery
        message = incoming.finish(codings.of_received(incoming.name, incoming.header, incoming.kind))
        if delivery.causes is not None:
            delivery.causes.check(message, delivery.messages_acknowledged)
        codings.remember_received(message)
        return message

    # --- state

    @property
    def received(self) -> int:
        """Number of the last frame received in order."""
        return self.delivery.received

    @property
    def acknowledged(self) -> int:
        """Number of the last frame that the peer has acknowledged."""
        return self.delivery.acknowledged

    @property
    def messages_sent(self) -> int:
        """Messages packed by this side."""
        return self.delivery.messages_sent

    @property
    def messages_acknowledged(self) -> int:
        """Messages of this side that the peer has acknowledged."""
        return self.delivery.messages_acknowledged

    @property
    def unacknowledged(self) -> int:
        """Messages of this side that the peer has not acknowledged."""
        return self.delivery.unacknowledged

    @property
    def all_acknowledged(self) -> bool:
        """True if the peer has acknowledged every packed message."""
        return self.delivery.all_acknowledged

    @property
    def sends_small_frames(self) -> bool:
        """True while this side sends small frames, because the link is slow."""
        return self.delivery.sends_small_frames

    @property
    def receives_small_frames(self) -> bool:
        """True if the incomplete message arrives in small frames, because the link is slow."""
        return self.delivery.receives_small_frames

    @property
    def holds_frames(self) -> bool:
        """True if packed frames wait for acknowledgements of others; `due` returns them in time."""
        return self.delivery.holds_frames

    @property
    def missing(self) -> int:
        """Bytes that the incomplete message still lacks; 0 if there is none."""
        return self._incoming.missing

    def check_waiting(self, messages: int) -> None:
        """Raise WireError if more received messages wait here than the peer may send without a reply."""
        self.delivery.check_waiting(messages)
