"""A client's side of one session: messages out and in, on whichever stream is open.

Law: all frames pass through the session's endpoint, which outlives the streams, so that a broken stream loses no
message.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from sl_client.transport.stream import ClientStream, StreamBroken, refusal_error
from sl_common.codec import Link
from sl_common.errors import Refused, WireError
from sl_common.messages.inference import InferenceRequest
from sl_common.messages.training import ToServer
from sl_common.wire import SLOW_S, Endpoint, Frame, Greeting, Hello, Refusal, Timing, read_answer
from sl_common.wire.accounting import GRPC_PREFIX
from sl_common.wire.incoming import CallKind

ClientMessage = ToServer | InferenceRequest
_FIRST_LIMIT = 1 << 20  # bytes of a message body before the run is known


class IncomingMessage(NamedTuple):
    """A message from the server, and its times."""

    message: Any  # of ToClient on a stream that trains, of InferenceReply on one that infers
    at: float  # when its last frame came, of `time.perf_counter`
    round_trip_s: float  # from this side's last message until then
    decode_s: float  # spent on all of its frames


class ClientSession:
    """Messages and acknowledgements of one session.

    One thread uses it; its owner sets `stream` to one that has just been opened.
    """

    def __init__(self, call: CallKind, moved: Callable[[int, int], None], *, slow: bool = False) -> None:
        """`moved` is called with the bytes of each frame, up and down; `slow`: the link is known to be slow."""
        self.endpoint = Endpoint("client", link=Link(), limit_bytes=_FIRST_LIMIT, limit_tensors=0, call=call)
        self.stream: ClientStream | None = None
        self.slow = slow  # measured anew whenever a stream breaks
        self.waiting: deque[IncomingMessage] = deque()  # received while a message was still being sent
        self._moved = moved
        self._broken: StreamBroken | None = None  # raised while a message was being sent
        self._said_at = self._last_word_at = 0.0  # by this side; by either
        self._decode_s = 0.0  # of the message on its way in

    def greet(self, hello: Hello) -> Greeting:
        """Say hello on a new stream and return the server's greeting.

        Raises StreamBroken, Refused, or WireError if the answer is neither a greeting nor a refusal.
        """
        assert self.stream is not None
        self.stream.send(hello.to_frame())
        answer = read_answer(self.stream.receive())
        if isinstance(answer, Refusal):
            raise refusal_error(answer.code, answer.reason)
        answer.check_version()
        self._broken = None
        self._last_word_at = time.perf_counter()
        return answer

    def resume(self, received: int) -> None:
        """Send again the frames after number `received`, which the server lacks.

        Raises WireError if it cannot have so many.
        """
        self._send(self.endpoint.resend(received, slow=self.slow))

    def say(self, message: ClientMessage, timing: Timing | None = None) -> float:
        """Encode and send a message; return the seconds that encoding took. Raises what `Endpoint.pack` does.

        On a slow link this returns when the last frame is on its way: the rest of a message waits for acknowledgements,
        which a caller that computes does not read. If the stream breaks meanwhile, a later `receive` says so.
        """
        started = time.perf_counter()
        frames = self.endpoint.pack(message, timing=timing)
        self._said_at = self._last_word_at = time.perf_counter()
        self._send(frames)
        if self.endpoint.holds_frames and self._broken is None:
            self._send_rest()
        return self._said_at - started

    def receive(self) -> IncomingMessage:
        """Wait for the next message; messages that came before the stream broke are returned first.

        Raises StreamBroken, Refused, or WireError for a frame that is not as agreed.
        """
        if self.waiting:
            return self.waiting.popleft()
        self.raise_break()
        while (incoming := self._read_frame()) is None:
            pass
        return incoming

    def raise_break(self) -> None:
        """Raise the StreamBroken that came while a message was being sent, if one did."""
        if self._broken is not None:
            broken, self._broken = self._broken, None
            raise broken

    def finish(self) -> None:
        """Acknowledge all received frames, then end the stream once what was sent has arrived."""
        assert self.stream is not None
        last = self.endpoint.acknowledgement(at_once=True)
        self._send([last] if last else [])
        self.stream.finish()

    def say_last(self, message: ClientMessage) -> None:
        """Send a message and end the stream, as far as the stream still carries it."""
        if self.stream is None:
            return
        with contextlib.suppress(StreamBroken, WireError):
            self._send(self.endpoint.pack(message))
            self.stream.finish()

    def _send_rest(self) -> None:
        try:
            while self.endpoint.holds_frames:
                incoming = self._read_frame()
                if incoming is not None:
                    self.waiting.append(incoming)
                    self.endpoint.check_waiting(len(self.waiting))
        except StreamBroken as error:
            self._broken = error  # the message is packed, and goes out on the next stream

    def _send(self, frames: Sequence[Frame]) -> None:
        stream = self.stream
        assert stream is not None, "open the connection first"
        for frame in frames:
            stream.send(frame)
            self._moved(sum(nbytes for _, nbytes in frame.tally), 0)

    def _read_frame(self) -> IncomingMessage | None:
        """Take one frame; return the message that it completes, or None."""
        stream, endpoint = self.stream, self.endpoint
        assert stream is not None, "open the connection first"
        try:
            data = stream.receive()
        except StreamBroken:
            self.slow = time.perf_counter() - self._last_word_at > SLOW_S or endpoint.sends_small_frames
            raise
        at = self._last_word_at = time.perf_counter()
        try:
            received = endpoint.feed(data)
        except Refused as error:  # some refusals are for now: another stream may be taken
            raise refusal_error(error.code, error.reason) from None
        self._moved(0, len(data) + GRPC_PREFIX)
        stream.check(endpoint.acknowledged)
        due = endpoint.due(at)
        if due:
            self._send(due)
        self._decode_s += time.perf_counter() - at
        if received.message is None:
            return None
        decode_s, self._decode_s = self._decode_s, 0.0
        return IncomingMessage(received.message, at, at - self._said_at, decode_s)
