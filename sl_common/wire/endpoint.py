"""One side of a conversation: messages in, numbered frames out, and back. It knows no socket and no clock.

Law: whatever happens to the streams, every message that one side packed is fed to the other exactly once, in order. A frame is
kept until the peer has acknowledged it; after a break each side resends what the other lacks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from google.protobuf.message import DecodeError
from torch import Tensor

from sl_common.codec import Coding, Link, Packed, Scheme
from sl_common.errors import Refused, WireError
from sl_common.messages import Gradient, Message, Smashed, WireKind, kind_of
from sl_common.proto import split_pb2 as pb
from sl_common.seeds import seed_of
from sl_common.wire import translate
from sl_common.wire.assembly import Assembly
from sl_common.wire.timing import Timing

CHUNK_BYTES = 1 << 20  # Python gRPC moves 1 MiB messages four times faster than one of 16 MiB
MAX_CHUNK = 4 << 20
GRPC_PREFIX = 5  # bytes that gRPC puts before each message: a flag and the length
ACK_EVERY = 8 << 20  # received bytes after which a silent side owes a bare acknowledgement

_CHUNK_TAG = bytes([15 << 3 | 2])  # field 15, length-delimited


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Frame:
    """One serialized frame and what its bytes on the wire (the gRPC prefix included) are spent on."""

    seq: int
    data: bytes
    tally: tuple[tuple[WireKind, int], ...]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Received:
    """What one frame brought: its bytes by kind, and the message if it is whole now."""

    tally: tuple[tuple[WireKind, int], ...]
    message: Message | None = None
    timing: Timing | None = None  # the client's, of an earlier step


class Endpoint:
    """The wire's side of one client's session, on the client or on the server."""

    def __init__(
        self, side: Literal["client", "server"], *, link: Link, limit_bytes: int, chunk_bytes: int = CHUNK_BYTES
    ) -> None:
        """`limit_bytes` bounds the body of a message that the peer may send: no header makes us allocate more."""
        self._out: Any
        self._in: Any
        self._out, self._in = (pb.ClientFrame, pb.ServerFrame) if side == "client" else (pb.ServerFrame, pb.ClientFrame)
        self.link = link
        self.limit_bytes = limit_bytes
        self._chunk_bytes = chunk_bytes
        self.sent = 0  # number of the last frame we made
        self.received = 0  # number of the last frame we got in order
        self._unacked: deque[Frame] = deque()
        self._acked = 0  # highest number the peer acknowledged
        self._owed = 0  # bytes received since our last acknowledgement went out
        self._name = ""
        self._header: Any = None
        self._kind: WireKind = "control"
        self._assembly: Assembly | None = None
        self._schemes: list[Scheme] = []  # of the tensors of the message on its way in
        self._labels = 0  # bytes of labels still to come in this message
        self._likes: dict[int, Tensor] = {}

    # --- out

    def pack(self, message: Message, *, timing: Timing | None = None) -> list[Frame]:
        """Encode a message once, as frames to send now and to resend unchanged. Raises ValueError on NaN or Inf."""
        name, header, packed = translate.encode(message, self.link, self._coding(message))
        self._remember(message, packed)
        kind = kind_of(message)
        labels = packed[0].layout.nbytes if kind == "smashed" else 0
        frames, carried = [], 0
        for number, pieces in enumerate(_chunks(packed, self._chunk_bytes)):
            self.sent += 1
            head = self._out(seq=self.sent, ack=self.received, **({name: header} if number == 0 else {}))
            if number == 0 and timing is not None:
                head.timing.CopyFrom(timing.to_header())
            data = _join(head.SerializeToString(), pieces)
            before, carried = carried, carried + sum(len(piece) for piece in pieces)
            of_labels = min(carried, labels) - min(before, labels)
            frames.append(Frame(seq=self.sent, data=data, tally=_tally(kind, len(data), of_labels)))
        self._unacked.extend(frames)
        self._owed = 0
        return frames

    @property
    def settled(self) -> bool:
        """The peer has acknowledged everything we packed."""
        return not self._unacked

    def acknowledgement(self, *, at_once: bool = False) -> Frame | None:
        """A bare acknowledgement if we have received much and said nothing; it frees the peer's memory."""
        if self._owed < ACK_EVERY and not at_once:
            return None
        self._owed = 0
        data = self._out(ack=self.received).SerializeToString()
        return Frame(seq=0, data=data, tally=_tally("control", len(data), 0))

    def resend(self, peer_received: int) -> list[Frame]:
        """The frames that the peer lacks after a break. Raises WireError if it claims what cannot be."""
        if not self._acked <= peer_received <= self.sent:
            raise WireError(f"peer has received frame {peer_received}, we know {self._acked} and sent {self.sent}")
        self._forget(peer_received)
        return list(self._unacked)

    # --- in

    def feed(self, data: bytes) -> Received:
        """Take one frame. Raises WireError if it is malformed, out of order, too large or not what this run agreed on.

        Raises Refused if the server says no.
        """
        try:
            frame = self._in.FromString(data)
        except DecodeError as error:
            raise WireError(f"frame of {len(data)} bytes is not protobuf") from error
        name = frame.WhichOneof("header")
        if name in ("hello", "greeting"):
            raise WireError(f"{name} in the middle of a stream")
        if name == "refusal":
            raise Refused(frame.refusal.code, frame.refusal.reason)
        self._acknowledged(frame.ack)
        if frame.seq <= self.received:  # a bare acknowledgement, or a frame that crossed with our own resend
            return Received(tally=_tally("control", len(data), 0))
        if frame.seq != self.received + 1:
            raise WireError(f"frame {frame.seq} follows frame {self.received}")
        return self._take(frame, name, len(data))

    def _take(self, frame: Any, name: str | None, nbytes: int) -> Received:
        if name is not None:
            self._start(name, getattr(frame, name))
        elif self._assembly is None:
            raise WireError(f"frame {frame.seq} has neither a header nor a message to go on with")
        chunk = frame.chunk
        if len(chunk) > MAX_CHUNK:
            raise WireError(f"chunk of {len(chunk)} bytes, at most {MAX_CHUNK} are allowed")
        assert self._assembly is not None
        if name is None and not chunk:
            raise WireError(f"frame {frame.seq} is empty")
        labels, self._labels = self._labels, max(0, self._labels - len(chunk))
        self._assembly.add(chunk)
        message = None if self._assembly.missing else self._finish()
        self.received = frame.seq
        self._owed += nbytes
        timing = Timing.from_header(frame.timing) if name == "smashed" and frame.HasField("timing") else None
        return Received(tally=_tally(self._kind, nbytes, labels - self._labels), message=message, timing=timing)

    def _start(self, name: str, header: Any) -> None:
        """Check a header before any memory is taken for its body."""
        if self._assembly is not None:
            raise WireError(f"{name} begins while {self._assembly.missing} bytes of {self._name} are missing")
        layouts = translate.layouts_of(name, header)
        direction = translate.direction_of(name)
        for layout in layouts:
            if layout.decoded_nbytes > self.limit_bytes:
                raise WireError(
                    f"{name}: a tensor of {layout.decoded_nbytes} bytes, this run allows {self.limit_bytes}"
                )
        schemes = [self.link.agreed(direction, layout) for layout in layouts]
        total = sum(layout.nbytes for layout in layouts)
        if total > self.limit_bytes:
            raise WireError(f"{name}: a body of {total} bytes, this run allows {self.limit_bytes}")
        self._name, self._header, self._kind = name, header, _kind_of_header(name, header)
        self._schemes = schemes
        self._assembly = Assembly(layouts)
        self._labels = layouts[0].nbytes if self._kind == "smashed" else 0

    def _finish(self) -> Message:
        assert self._assembly is not None
        packed, self._assembly = self._assembly.packed, None
        like = self._likes.pop(self._header.step, None) if self._name == "gradient" else None
        coding = Coding(like=like, training=self._kind != "eval")
        message = translate.decode(self._name, self._header, packed, self._schemes, coding)
        self._header = None
        if isinstance(message, Smashed) and message.needs_grad and self.link.down.uses_like:
            self._likes[message.step] = message.z
        return message

    # --- bookkeeping

    def _coding(self, message: Message) -> Coding:
        match message:
            case Smashed(round=r, wave=w, step=s, train=train):
                return Coding(training=train, seed=seed_of("codec", r, w, s))
            case Gradient(step=step):
                return Coding(like=self._likes.pop(step, None), seed=seed_of("codec", self.sent))
            case _:
                return Coding(seed=seed_of("codec", self.sent))

    def _remember(self, message: Message, packed: Sequence[Packed]) -> None:
        """Keep the activation as it goes over the wire, for a gradient codec that needs it."""
        if isinstance(message, Smashed) and message.needs_grad and self.link.down.uses_like:
            self._likes[message.step] = self.link.up.decode(packed[1], Coding(training=message.train))

    def _acknowledged(self, number: int) -> None:
        if number > self.sent:
            raise WireError(f"peer acknowledges frame {number}, we sent {self.sent}")
        self._forget(number)

    def _forget(self, number: int) -> None:
        self._acked = max(self._acked, number)
        while self._unacked and self._unacked[0].seq <= self._acked:
            self._unacked.popleft()


def _kind_of_header(name: str, header: Any) -> WireKind:
    """As messages.kind_of, before the body is there."""
    if name == "smashed":
        return "smashed" if header.train or header.needs_grad else "eval"
    if name == "gradient":
        return "gradient" if header.HasField("dz") else "control"
    return "weights" if name in ("begin", "done") and header.weights else "control"


def _tally(kind: WireKind, nbytes: int, labels: int) -> tuple[tuple[WireKind, int], ...]:
    whole = nbytes + GRPC_PREFIX
    return ((kind, whole - labels), ("labels", labels)) if labels else ((kind, whole),)


def _chunks(packed: Sequence[Packed], size: int) -> Iterator[list[memoryview]]:
    """The body in pieces of at most `size` bytes, each a list of views; one empty piece for an empty body."""
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


def _join(head: bytes, pieces: Sequence[memoryview]) -> bytes:
    """Append the chunk field by hand: protobuf fields concatenate, and this copies the tensor once instead of three times."""
    length = sum(len(piece) for piece in pieces)
    return b"".join([head, _CHUNK_TAG, _varint(length), *pieces]) if length else head


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
