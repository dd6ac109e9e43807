"""Exactly-once delivery in order: numbers, acknowledgements in both directions, and frames kept for resending.

Law: a frame is kept until the peer has acknowledged it. After a break each side resends the frames that the other
lacks, and no others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from sl_common.codec import Packed
from sl_common.errors import WireError
from sl_common.messages.training import Message
from sl_common.wire.accounting import tally_of
from sl_common.wire.causes import WORDS, Causes
from sl_common.wire.frame import Frame
from sl_common.wire.pace import LinkPace

ACK_EVERY = 8 << 20  # received bytes after which a side that sends nothing else owes a bare acknowledgement
ACK_MESSAGES = 8  # received messages after which it owes one, if they are short


class Delivery:
    """Numbers, acknowledgements and unacknowledged frames of one endpoint, in both directions."""

    def __init__(self, frame: type, chunk_bytes: int) -> None:
        """`frame`: protobuf class of a sent frame. `chunk_bytes`: most bytes of a body in an ordinary frame."""
        self._frame: Any = frame
        self._chunk_bytes = chunk_bytes
        self._pace = LinkPace(frame, chunk_bytes)
        self.causes: Causes | None = None
        self.sent = 0  # number of the last frame that was released for sending
        self.received = 0  # number of the last frame received in order
        self.acknowledged = 0  # number of the last of our frames that the peer has acknowledged
        self.messages_sent = 0  # messages packed by this side
        self.messages_acknowledged = 0  # of those, messages that the peer has acknowledged
        self.receives_small_frames = False  # the incomplete message arrives in small frames: the link is slow
        self._unacked: deque[Frame] = deque()
        self._owed_bytes = 0  # received since our last acknowledgement
        self._owed_messages = 0
        self._prompt = False  # the peer sent a small frame and waits for its acknowledgement

    def agree(self, window: int | None) -> None:
        """Require the acknowledgements that follow from the run's `client.window`; None requires none."""
        self.causes = None if window is None else Causes(window)

    # --- out

    def check_room(self) -> None:
        """Raise WireError if too many messages are unacknowledged to keep another one for the peer."""
        causes = self.causes
        if causes is not None and self.unacknowledged >= causes.most:
            raise WireError(
                f"{self.unacknowledged} messages to the peer are not acknowledged, at most {causes.most} are kept "
                f"with client.window = {causes.window}"
            )

    def send(self, message: Message, frames: list[Frame], body: Sequence[Packed]) -> list[Frame]:
        """Keep the frames of a message for resending and return those that may be sent now."""
        self.messages_sent += 1
        if self.causes is not None:
            self.causes.sent(message, self.messages_sent)
        if self._pace.on and not (len(frames) == 1 and self._pace.allows(sum(one.layout.nbytes for one in body))):
            self._pace.hold(frames)
            return self._release()
        self._keep(frames)
        return frames

    def _release(self) -> list[Frame]:
        frames = []
        for number, piece in enumerate(self._pace.release(self.sent, self.received), self.sent + 1):
            tally = tally_of(piece.kind, len(piece.data), piece.labels)
            frames.append(Frame(seq=number, pieces=(piece.data,), tally=tally, ends=piece.ends))
        if frames:
            self._keep(frames)
        return frames

    def _keep(self, frames: list[Frame]) -> None:
        """Keep frames that are sent now. Each acknowledges all received frames, so no acknowledgement is owed."""
        self.sent += len(frames)
        self._unacked.extend(frames)
        self._owed_bytes, self._owed_messages, self._prompt = 0, 0, False

    def due(self, now: float) -> Sequence[Frame]:
        """Return frames to send after one was received at `now` (s): held ones, or a bare acknowledgement."""
        if not self._pace.on and not self._owes:
            return ()
        self._pace.acknowledged(self.acknowledged, now)
        frames = self._release()
        bare = None if frames else self.acknowledgement()
        return frames if bare is None else [bare]

    @property
    def _owes(self) -> bool:
        """True if a bare acknowledgement is due."""
        return self._prompt or self._owed_bytes >= ACK_EVERY or self._owed_messages >= ACK_MESSAGES

    def acknowledgement(self, *, at_once: bool = False) -> Frame | None:
        """Return a bare acknowledgement if one is due or `at_once` is set, else None. It frees the peer's memory."""
        if not self._owes and not at_once:
            return None
        self._owed_bytes, self._owed_messages, self._prompt = 0, 0, False
        data = self._frame(ack=self.received).SerializeToString()
        return Frame(seq=0, pieces=(data,), tally=tally_of("control", len(data)))

    def resend(self, peer_received: int, *, slow: bool) -> list[Frame]:
        """Return the frames that the peer lacks after a break; if `slow`, cut into smaller ones with new numbers.

        Raises WireError if the peer claims frames that were not sent, or lacks frames that it acknowledged.
        """
        if not self.acknowledged <= peer_received <= self.sent:
            raise WireError(
                f"peer has received frame {peer_received}, we know {self.acknowledged} and sent {self.sent}"
            )
        self._forget(peer_received)
        if slow:
            self._pace.slow_down()
        if not self._pace.on:
            return list(self._unacked)
        self._pace.begin_anew(self._unacked)
        self._unacked.clear()
        self.sent = peer_received
        return self._release()

    # --- in

    def acknowledge(self, number: int) -> None:
        """Discard the frames up to this number. Raises WireError if it was never sent."""
        if number > self.sent:
            raise WireError(f"peer acknowledges frame {number}, we sent {self.sent}")
        self._forget(number)

    def _forget(self, number: int) -> None:
        self.acknowledged = max(self.acknowledged, number)
        while self._unacked and self._unacked[0].seq <= self.acknowledged:
            self.messages_acknowledged += self._unacked.popleft().ends

    def is_next(self, number: int) -> bool:
        """Return True for the next frame, False for a bare acknowledgement or a frame that was received before.

        Raises WireError if a frame before it is missing.
        """
        if number <= self.received:
            return False
        if number != self.received + 1:
            raise WireError(f"frame {number} follows frame {self.received}")
        return True

    def receive(self, nbytes: int, chunk: int, missing: int) -> None:
        """Record the next frame: its bytes, the bytes of its chunk, and the bytes that its message still lacks."""
        if self.receives_small_frames or (missing and chunk < self._chunk_bytes):
            self.receives_small_frames, self._prompt = missing > 0, True
        self.received += 1
        self._owed_bytes += nbytes
        self._owed_messages += not missing

    # --- state

    @property
    def sends_small_frames(self) -> bool:
        """True while this side sends small frames, because the link is slow."""
        return self._pace.slow

    @property
    def holds_frames(self) -> bool:
        """True if packed frames wait for acknowledgements of others; `due` returns them in time."""
        return self._pace.holds

    @property
    def unacknowledged(self) -> int:
        """Messages of this side that the peer has not acknowledged."""
        return self.messages_sent - self.messages_acknowledged

    @property
    def all_acknowledged(self) -> bool:
        """True if the peer has acknowledged every packed message."""
        return not self._unacked and not self._pace.holds

    def check_waiting(self, messages: int) -> None:
        """Raise WireError if more received messages wait here than the peer may send without a reply."""
        most = WORDS if self.causes is None else self.causes.most
        if messages > most:
            raise WireError(f"{messages} messages of the peer's wait while ours goes out, at most {most} can")
