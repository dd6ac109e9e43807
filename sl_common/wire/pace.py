"""Sending on a slow link: small frames, of which only a few are unacknowledged at any time.

Pure; the time is an argument, in seconds. At 2 kB/s a frame of 1 MiB takes minutes. Keep-alive probes of both sides
wait behind it, and the link looks dead. Small frames are acknowledged one by one, which shows that the link works and
how fast it is. Their size starts small and at most doubles with each acknowledged group of frames.

Law: the bytes of a message and their order do not depend on how they are cut. Frames that the peer has are never cut
again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from sl_common.wire.accounting import FrameTally, WireKind

LEAST = 256  # ordinary frame size over the smallest: 4 KiB, which take 2 s at 16 kbit/s
FRAMES_AHEAD = 4  # unacknowledged frames at most; messages of a single frame do not count
FRAME_S = 0.5  # time that a frame of the right size for the link takes


class CutFrame(Protocol):
    """A frame as it was packed."""

    @property
    def data(self) -> bytes:
        """The serialized frame."""
        ...

    @property
    def tally(self) -> FrameTally:
        """Bytes on the wire by kind."""
        ...


@dataclass(kw_only=True, slots=True, eq=False)
class Remainder:
    """A message, or the remainder of one, that was not sent yet."""

    head: Any  # a frame without number and chunk; it has the message's header if nothing of the message was sent
    body: deque[memoryview]
    nbytes: int  # of the remaining body
    kind: WireKind
    labels: int  # bytes of labels, which come first in the body
    whole: bool  # nothing of the message was sent

    def take(self, nbytes: int) -> bytes:
        """Remove and return the next bytes of the body."""
        taken: list[memoryview] = []
        self.nbytes -= nbytes
        while nbytes:
            piece = self.body.popleft()
            if len(piece) > nbytes:
                self.body.appendleft(piece[nbytes:])
                piece = piece[:nbytes]
            taken.append(piece)
            nbytes -= len(piece)
        return b"".join(taken)


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """A frame that may be sent now."""

    data: bytes
    kind: WireKind
    labels: int  # bytes of labels in it
    ends: bool  # True for the last frame of a message


class LinkPace:
    """Limits what one side sends on a slow link. While the link is not slow, only `on` is used."""

    def __init__(self, frame: type, full: int) -> None:
        """`frame`: protobuf class of a sent frame. `full`: most bytes of a body in an ordinary frame."""
        self._frame, self._full, self._least = frame, full, max(1, full // LEAST)
        self.size = full
        self.on = False  # frames are small, or were small and some are unacknowledged
        self._waiting: deque[Remainder] = deque()
        self._ahead: deque[tuple[int, int]] = deque()  # number and bytes of each unacknowledged frame
        self._under_way = 0  # bytes of those
        self._passed = 0  # acknowledged bytes
        self._mark: tuple[float, int] | None = None  # start of the measurement: time, and acknowledged bytes

    @property
    def slow(self) -> bool:
        """True while frames are smaller than ordinary ones."""
        return self.size < self._full

    @property
    def holds(self) -> bool:
        """True if data wait for acknowledgements."""
        return bool(self._waiting)

    def allows(self, nbytes: int) -> bool:
        """Return True if a message with so many bytes of body may be sent as one frame now."""
        return not self._waiting and nbytes <= self.size

    def slow_down(self) -> None:
        """Begin with the smallest frames, because the link was found to be slow."""
        self.size, self.on = self._least, self._least < self._full

    def hold(self, frames: Iterable[CutFrame]) -> None:
        """Queue the frames of a message behind those that wait."""
        self._waiting.extend(self._remainders(frames))

    def begin_anew(self, lost: Iterable[CutFrame]) -> None:
        """Queue frames that were lost with the last stream before those that wait; they are cut again."""
        self._ahead.clear()
        self._under_way, self._mark = 0, None
        remainders = deque(self._remainders(lost))
        if remainders and self._waiting and not self._waiting[0].whole:  # its first frames are among the lost ones
            last, more = remainders.pop(), self._waiting.popleft()
            last.body.extend(more.body)
            last.nbytes, last.labels = last.nbytes + more.nbytes, last.labels + more.labels
            remainders.append(last)
        self._waiting = remainders + self._waiting

    def _remainders(self, frames: Iterable[CutFrame]) -> Iterator[Remainder]:
        remainder: Remainder | None = None
        for cut in frames:
            frame = self._frame.FromString(cut.data)  # type: ignore[attr-defined]
            body = memoryview(frame.chunk)
            labels = dict(cut.tally).get("labels", 0)
            if remainder is not None and frame.WhichOneof("header") is None:
                remainder.body.append(body)
                remainder.nbytes, remainder.labels = remainder.nbytes + len(body), remainder.labels + labels
                continue
            if remainder is not None:
                yield remainder
            whole = frame.WhichOneof("header") is not None
            for name in ("seq", "ack", "chunk"):
                frame.ClearField(name)
            bodies = deque([body] if body else [])
            kind = cut.tally[0][0]
            remainder = Remainder(head=frame, body=bodies, nbytes=len(body), kind=kind, labels=labels, whole=whole)
        if remainder is not None:
            yield remainder

    def release(self, sent: int, ack: int) -> Iterator[Piece]:
        """Yield the frames that may be sent now, numbered from `sent` + 1."""
        while self._waiting:
            remainder = self._waiting[0]
            nbytes = min(remainder.nbytes, self.size)
            alone = remainder.whole and nbytes == remainder.nbytes  # the answer to the message acknowledges it
            if not alone and self.slow and self._under_way + nbytes > FRAMES_AHEAD * self.size:
                return
            sent += 1
            labels = min(remainder.labels, nbytes)
            frame, remainder.head = remainder.head, self._frame()
            remainder.whole, remainder.labels = False, remainder.labels - labels
            frame.seq, frame.ack, frame.chunk = sent, ack, remainder.take(nbytes)
            if not alone:
                self._ahead.append((sent, nbytes))
                self._under_way += nbytes
            if not remainder.nbytes:
                self._waiting.popleft()
            yield Piece(data=frame.SerializeToString(), kind=remainder.kind, labels=labels, ends=not remainder.nbytes)

    def acknowledged(self, number: int, now: float) -> None:
        """Record that the peer has all frames up to this number, and adapt the frame size to the speed of the link."""
        passed = self._passed
        while self._ahead and self._ahead[0][0] <= number:
            nbytes = self._ahead.popleft()[1]
            self._under_way -= nbytes
            self._passed += nbytes
        if self._passed != passed:
            self._measure(now)
        self.on = self.slow or bool(self._ahead or self._waiting)

    def _measure(self, now: float) -> None:
        idle = not self._ahead and not self._waiting  # a measurement must not span a pause
        if self._mark is not None:
            since, before = self._mark
            passed = self._passed - before
            if idle or passed >= FRAMES_AHEAD * self.size:
                right = FRAME_S * passed / max(now - since, 1e-6)
                self.size = int(min(self._full, max(self._least, self.size // 2, min(right, 2 * self.size))))
                self._mark = None
        if idle:
            self._mark = None
        elif self._mark is None:
            self._mark = now, self._passed
