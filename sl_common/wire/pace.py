"""What goes out on a link that was seen to be slow: small frames, and no more of them under way than pass in some seconds.

Pure; the time is an argument, in seconds. A frame of 1 MiB is under way for minutes where 2 kB pass in a second: the probes of both
sides wait behind it, and nobody can tell such a link from a dead one. Small frames are acknowledged one by one, which shows that the
link lives and how fast it is. Their size starts small and at most doubles with each window of them that was acknowledged.

Law: the bytes of a message stay the same, in the same order, however they are cut; what the peer has is never cut anew.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from sl_common.messages.training import WireKind

LEAST = 256  # the smallest frame is so much smaller than an ordinary one: 4 KiB, which is 2 s at 16 kbit/s
FRAMES_AHEAD = 4  # under way at most, unless a message is one frame by itself
FRAME_S = 0.5  # that a frame takes, if its size is right for the link

FrameTally = tuple[tuple[WireKind, int], ...]


class CutFrame(Protocol):
    """A frame as it was made."""

    @property
    def data(self) -> bytes:
        """Serialized."""
        ...

    @property
    def tally(self) -> FrameTally:
        """What its bytes are spent on."""
        ...


@dataclass(kw_only=True, slots=True, eq=False)
class Rest:
    """A message, or what is left of one, that is in no frame."""

    head: Any  # a frame without number and chunk; it has the message's header if none of it was in a frame
    body: deque[memoryview]
    nbytes: int  # of the body
    kind: WireKind
    labels: int  # bytes of them, which lead the body
    whole: bool

    def take(self, nbytes: int) -> bytes:
        """The body's next bytes."""
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
    """A frame that may go out."""

    data: bytes
    kind: WireKind
    labels: int  # bytes of them in it
    ends: bool  # its message


class LinkPace:
    """How one side sends on one link. While the link is not slow, nothing here is asked for but `on`."""

    def __init__(self, frame: type, full: int) -> None:
        """`frame`: the protobuf message of a frame; `full`: bytes in an ordinary one."""
        self._frame, self._full, self._least = frame, full, max(1, full // LEAST)
        self.size = full
        self.on = False  # frames are small, or were and some are under way
        self._rests: deque[Rest] = deque()
        self._ahead: deque[tuple[int, int]] = (
            deque()
        )  # number and bytes of each frame whose acknowledgement is waited for
        self._under_way = 0  # bytes of those
        self._passed = 0
        self._mark: tuple[float, int] | None = None  # when, and what had passed then

    @property
    def slow(self) -> bool:
        """Frames are smaller than ordinary ones."""
        return self.size < self._full

    @property
    def holds(self) -> bool:
        """Something waits until more has been acknowledged."""
        return bool(self._rests)

    def lets(self, nbytes: int) -> bool:
        """A message of so many bytes may go out as one frame."""
        return not self._rests and nbytes <= self.size

    def slow_down(self) -> None:
        """The link was seen to be slow: begin with the smallest frames."""
        self.size, self.on = self._least, self._least < self._full

    def hold(self, frames: Iterable[CutFrame]) -> None:
        """What has been packed goes out after what is held."""
        self._rests.extend(self._rests_of(frames))

    def begin_anew(self, lost: Iterable[CutFrame]) -> None:
        """There is a new stream, and the peer does not have these frames: they are taken apart, before what is held."""
        self._ahead.clear()
        self._under_way, self._mark = 0, None
        rests = deque(self._rests_of(lost))
        if rests and self._rests and not self._rests[0].whole:  # the frames ended in the middle of it
            last, more = rests.pop(), self._rests.popleft()
            last.body.extend(more.body)
            last.nbytes, last.labels = last.nbytes + more.nbytes, last.labels + more.labels
            rests.append(last)
        self._rests = rests + self._rests

    def _rests_of(self, frames: Iterable[CutFrame]) -> Iterator[Rest]:
        rest: Rest | None = None
        for cut in frames:
            frame = self._frame.FromString(cut.data)  # type: ignore[attr-defined]
            body = memoryview(frame.chunk)
            labels = dict(cut.tally).get("labels", 0)
            if rest is not None and frame.WhichOneof("header") is None:
                rest.body.append(body)
                rest.nbytes, rest.labels = rest.nbytes + len(body), rest.labels + labels
                continue
            if rest is not None:
                yield rest
            whole = frame.WhichOneof("header") is not None
            for name in ("seq", "ack", "chunk"):
                frame.ClearField(name)
            bodies = deque([body] if body else [])
            kind = cut.tally[0][0]
            rest = Rest(head=frame, body=bodies, nbytes=len(body), kind=kind, labels=labels, whole=whole)
        if rest is not None:
            yield rest

    def release(self, sent: int, ack: int) -> Iterator[Piece]:
        """The frames that may go out now, numbered from `sent` + 1."""
        while self._rests:
            rest = self._rests[0]
            nbytes = min(rest.nbytes, self.size)
            alone = rest.whole and nbytes == rest.nbytes  # it is acknowledged when it is answered
            if not alone and self.slow and self._under_way + nbytes > FRAMES_AHEAD * self.size:
                return
            sent += 1
            labels = min(rest.labels, nbytes)
            frame, rest.head, rest.whole, rest.labels = rest.head, self._frame(), False, rest.labels - labels
            frame.seq, frame.ack, frame.chunk = sent, ack, rest.take(nbytes)
            if not alone:
                self._ahead.append((sent, nbytes))
                self._under_way += nbytes
            if not rest.nbytes:
                self._rests.popleft()
            yield Piece(data=frame.SerializeToString(), kind=rest.kind, labels=labels, ends=not rest.nbytes)

    def acknowledged(self, number: int, now: float) -> None:
        """The peer has all frames up to this one: is the link faster than it seemed, or slower?"""
        passed = self._passed
        while self._ahead and self._ahead[0][0] <= number:
            nbytes = self._ahead.popleft()[1]
            self._under_way -= nbytes
            self._passed += nbytes
        if self._passed != passed:
            self._measure(now)
        self.on = self.slow or bool(self._ahead or self._rests)

    def _measure(self, now: float) -> None:
        over = not self._ahead and not self._rests  # what comes next may come much later
        if self._mark is not None:
            since, before = self._mark
            passed = self._passed - before
            if over or passed >= FRAMES_AHEAD * self.size:
                right = FRAME_S * passed / max(now - since, 1e-6)
                self.size = int(min(self._full, max(self._least, self.size // 2, min(right, 2 * self.size))))
                self._mark = None
        if over:
            self._mark = None
        elif self._mark is None:
            self._mark = now, self._passed
