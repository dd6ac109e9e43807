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

from sl_common.codec import Coding, Link, Packed
from sl_common.codec.packed import Buffer
from sl_common.errors import WireError
from sl_common.messages.inference import Query
from sl_common.messages.training import Aligned, Begin, Done, Gradient, Message, Smashed, WireKind, kind_of
from sl_common.proto import split_pb2 as pb
from sl_common.seeds import Draw
from sl_common.wire import translate
from sl_common.wire.assembly import Assembly, Plan
from sl_common.wire.causes import WORDS, Causes
from sl_common.wire.fields import begun, check_entries, split_frame
from sl_common.wire.greeting import refused
from sl_common.wire.pace import LinkPace
from sl_common.wire.timing import Timing

CHUNK_BYTES = 1 << 20  # Python gRPC moves 1 MiB messages four times faster than one of 16 MiB
MAX_CHUNK = 4 << 20
MAX_GRPC_MESSAGE = 2 * MAX_CHUNK  # bytes of one gRPC message: a frame with its header
GRPC_PREFIX = 5  # bytes that gRPC puts before each message: a flag and the length
ACK_EVERY = 8 << 20  # received bytes after which a silent side owes a bare acknowledgement
ACK_MESSAGES = 8  # or so many messages, if they are shorter

_REMEMBERED = 64  # kinds of message, by their tensor headers, that were checked
_FEW = 4  # tensors at most of those: batches, not weights
_KEPT = (
    1 << 18
)  # bytes of a body whose memory is kept for the next one: filling larger ones costs more than getting memory
_OF_INFER = frozenset({"fetch", "query", "offer", "lower", "scores"})
CallKind = Literal["train", "infer"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Frame:
    """One frame and what its bytes on the wire (the gRPC prefix included) are spent on.

    A large tensor that lies still until it is acknowledged is not copied beforehand: `bytes(frame)` is made when its turn to be written has
    come, and is the same every time.
    """

    seq: int
    pieces: tuple[Buffer, ...]  # what it is joined of
    tally: tuple[tuple[WireKind, int], ...]
    ends: bool = False  # a message that we packed

    def __bytes__(self) -> bytes:
        first = self.pieces[0]
        return first if len(self.pieces) == 1 and isinstance(first, bytes) else b"".join(self.pieces)

    @property
    def data(self) -> bytes:
        """Serialized."""
        return bytes(self)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Received:
    """What one frame brought: its bytes by kind, and the message if it is whole now."""

    tally: tuple[tuple[WireKind, int], ...]
    message: Message | None = None
    timing: Timing | None = None  # the client's, of an earlier step


class Endpoint:
    """The wire's side of one client's session, on the client or on the server."""

    def __init__(
        self,
        side: Literal["client", "server"],
        *,
        link: Link,
        limit_bytes: int,
        limit_tensors: int = translate.MAX_TENSORS,
        draw: Draw = (),
        chunk_bytes: int = CHUNK_BYTES,
        call: CallKind = "train",
        window: int | None = None,
    ) -> None:
        """`call`: what is being done, and so what may be heard. `limit_bytes` and `limit_tensors` bound the tensors of a message that the peer may send: no header
        makes us allocate more, or work on more.

        `draw` names what codecs draw here: the run's seed and the client's shard. `window`: the run's `client.window`; without it
        the peer may keep its acknowledgements to itself.
        """
        self._out: Any
        self._in: Any
        self._out, self._in = (pb.ClientFrame, pb.ServerFrame) if side == "client" else (pb.ServerFrame, pb.ClientFrame)
        self._call = call
        self.agree(link, limit_bytes, draw, window=window, limit_tensors=limit_tensors)
        self._chunk_bytes = chunk_bytes
        self._pace = LinkPace(self._out, chunk_bytes)
        self.sent = 0  # number of the last frame that could go out
        self.said = self.heard = 0  # messages that we packed; of those, whole with the peer as far as it has said
        self.received = 0  # number of the last frame we got in order
        self._unacked: deque[Frame] = deque()
        self._acked = 0  # highest number the peer acknowledged
        self._owed = 0  # bytes received since our last acknowledgement went out
        self._owed_messages = 0
        self._short = False  # the message on its way in comes in small frames: the link is slow
        self._prompt = False  # one of them came, and its sender waits for our word
        self._name = ""
        self._header: Any = None
        self._kind: WireKind = "control"
        self._assembly: Assembly | None = None  # of the message on its way in
        self._last: Assembly | None = None  # its memory serves again
        self._labels = 0  # bytes of labels still to come in this message
        self._likes: dict[int, Tensor] = {}
        self._wave = (0, 0)  # round and wave of the last Begin

    def agree(
        self,
        link: Link,
        limit_bytes: int,
        draw: Draw,
        residuals: dict[str, Tensor] | None = None,
        window: int | None = None,
        *,
        limit_tensors: int = translate.MAX_TENSORS,
    ) -> None:
        """From now on tensors travel by these codecs, and no message has more or larger ones. Nothing is under way meanwhile.

        `residuals`: what encodings of our own lost, for a codec with feedback; whoever keeps it can go back to it.
        """
        self.link = link
        self.residuals = {} if residuals is None else residuals
        self._draw = (*draw, "codec")
        self._limit_bytes = limit_bytes
        self._limit_tensors = min(limit_tensors, translate.MAX_TENSORS)
        self._plans: dict[tuple[str, tuple[bytes, ...]], Plan] = {}
        self._causes = None if window is None else Causes(window)

    # --- out

    def pack(self, message: Message, *, timing: Timing | None = None) -> list[Frame]:
        """Encode a message once, as frames to send now and to resend. Raises Diverged on NaN or Inf, which only identity carries.

        On a slow link the frames are what may go out now; `due` brings the others. Raises WireError if the peer acknowledges nothing, so
        that no more can be kept for it.
        """
        causes = self._causes
        if causes is not None and self.unheard >= causes.most:
            raise WireError(
                f"{self.unheard} messages to the peer are not acknowledged, at most {causes.most} are kept "
                f"with client.window = {causes.window}"
            )
        name, header, packed = translate.encode(message, self.link, self._coding(message))
        self._remember(message, packed)
        kind = kind_of(message)
        labels = packed[0].layout.nbytes if kind == "smashed" else 0
        still = _lies_still(message)
        first = {name: header} if timing is None else {name: header, "timing": timing.to_header()}
        frames, carried, total = [], 0, 0
        for one in packed:
            total += one.layout.nbytes
        for pieces in _chunks(packed, self._chunk_bytes):
            self.sent += 1
            head = self._out(seq=self.sent, ack=self.received, **first).SerializeToString()
            first = {}
            before, carried = carried, carried + sum(len(piece) for piece in pieces)
            parts: tuple[Buffer, ...] = (begun(head, carried - before), *pieces)
            tally = _tally(kind, len(parts[0]) + carried - before, min(carried, labels) - min(before, labels))
            joined = parts if still else (b"".join(parts),)
            frames.append(Frame(seq=self.sent, pieces=joined, tally=tally, ends=carried == total))
        self.said += 1
        if causes is not None:
            causes.said(message, self.said)
        if self._pace.on and not (len(frames) == 1 and self._pace.lets(carried)):
            self.sent -= len(frames)
            self._pace.hold(frames)
            return self._release()
        self._unacked.extend(frames)
        self._owed, self._owed_messages, self._prompt = 0, 0, False
        return frames

    def due(self, now: float) -> Sequence[Frame]:
        """What is to be sent after a frame came, at `now` in seconds: more of what waits for acknowledgements, or an acknowledgement."""
        if not self._pace.on and not self._is_owed:
            return ()
        self._pace.acknowledged(self._acked, now)
        frames = self._release()
        bare = None if frames else self.acknowledgement()
        return frames if bare is None else [bare]

    def _release(self) -> list[Frame]:
        frames = []
        for piece in self._pace.release(self.sent, self.received):
            self.sent += 1
            tally = _tally(piece.kind, len(piece.data), piece.labels)
            frames.append(Frame(seq=self.sent, pieces=(piece.data,), tally=tally, ends=piece.ends))
        self._unacked.extend(frames)
        if frames:
            self._owed, self._owed_messages, self._prompt = 0, 0, False
        return frames

    @property
    def _is_owed(self) -> bool:
        """A bare acknowledgement is due."""
        return self._prompt or self._owed >= ACK_EVERY or self._owed_messages >= ACK_MESSAGES

    @property
    def slow(self) -> bool:
        """We send small frames."""
        return self._pace.slow

    @property
    def holds(self) -> bool:
        """Something that was packed waits for acknowledgements: `due` brings it."""
        return self._pace.holds

    @property
    def unheard(self) -> int:
        """Messages of ours that the peer has not acknowledged."""
        return self.said - self.heard

    def check_waiting(self, messages: int) -> None:
        """Raise WireError if more of the peer's messages wait for their turn here than it can have said without hearing from us."""
        most = WORDS if self._causes is None else self._causes.most
        if messages > most:
            raise WireError(f"{messages} messages of the peer's wait while ours goes out, at most {most} can")

    @property
    def acknowledged(self) -> int:
        """Number of the last frame that the peer says it has."""
        return self._acked

    @property
    def missing(self) -> int:
        """Bytes that are still to come of the message on its way in; 0 if there is none."""
        return 0 if self._assembly is None else self._assembly.missing

    @property
    def small(self) -> bool:
        """The message on its way in comes in small frames."""
        return self._short

    @property
    def settled(self) -> bool:
        """The peer has acknowledged everything we packed."""
        return not self._unacked and not self._pace.holds

    def acknowledgement(self, *, at_once: bool = False) -> Frame | None:
        """A bare acknowledgement if we have received much and said nothing, which frees the peer's memory, or if the peer waits for it."""
        if not self._is_owed and not at_once:
            return None
        self._owed, self._owed_messages, self._prompt = 0, 0, False
        data = self._out(ack=self.received).SerializeToString()
        return Frame(seq=0, pieces=(data,), tally=_tally("control", len(data), 0))

    def resend(self, peer_received: int, *, slow: bool = False) -> list[Frame]:
        """The frames that the peer lacks after a break. Raises WireError if it claims what cannot be.

        `slow`: the link is slow, as far as is known; what the peer lacks then goes out in smaller frames with numbers of their own. So nothing
        of an earlier stream may be fed on either side after `peer_received` was said.
        """
        if not self._acked <= peer_received <= self.sent:
            raise WireError(f"peer has received frame {peer_received}, we know {self._acked} and sent {self.sent}")
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

    def feed(self, data: bytes) -> Received:
        """Take one frame. Raises WireError if it is malformed, out of order, too large or not what this run agreed on.

        Raises Refused if the server says no.
        """
        head, chunk = split_frame(data)
        check_entries(head, self._limit_tensors + translate.MAX_OTHERS)
        try:
            frame = self._in.FromString(head)
        except DecodeError as error:
            raise WireError(f"frame of {len(data)} bytes is not protobuf") from error
        name = frame.WhichOneof("header")
        if name in ("hello", "greeting"):
            raise WireError(f"{name} in the middle of a stream")
        if name == "refusal":
            raise refused(frame.refusal)
        self._acknowledged(frame.ack)
        if frame.seq <= self.received:  # a bare acknowledgement, or a frame that crossed with our own resend
            return Received(tally=_tally("control", len(data), 0))
        if frame.seq != self.received + 1:
            raise WireError(f"frame {frame.seq} follows frame {self.received}")
        return self._take(frame, name, chunk or memoryview(frame.chunk), len(data))

    def _take(self, frame: Any, name: str | None, chunk: memoryview, nbytes: int) -> Received:
        if name is not None:
            self._start(name, getattr(frame, name))
        elif self._assembly is None:
            raise WireError(f"frame {frame.seq} has neither a header nor a message to go on with")
        if len(chunk) > MAX_CHUNK:
            raise WireError(f"chunk of {len(chunk)} bytes, at most {MAX_CHUNK} are allowed")
        assert self._assembly is not None
        if name is None and not chunk:
            raise WireError(f"frame {frame.seq} is empty")
        labels, self._labels = self._labels, max(0, self._labels - len(chunk))
        self._assembly.add(chunk)
        if self._short or (self._assembly.missing and len(chunk) < self._chunk_bytes):
            self._short, self._prompt = self._assembly.missing > 0, True
        message = None if self._assembly.missing else self._finish()
        self.received = frame.seq
        self._owed += nbytes
        timing = Timing.from_header(frame.timing) if name in ("smashed", "query") and frame.HasField("timing") else None
        return Received(tally=_tally(self._kind, nbytes, labels - self._labels), message=message, timing=timing)

    def _start(self, name: str, header: Any) -> None:
        """Check a header before any memory is taken for its body."""
        if self._assembly is not None:
            raise WireError(f"{name} begins while {self._assembly.missing} bytes of {self._name} are missing")
        if (name in _OF_INFER) != (self._call == "infer"):
            raise WireError(f"{name} is not said on a stream to {self._call}")
        tensors = translate.tensor_headers(name, header, self._limit_tensors)
        plan = self._plans.get((name, tensors)) or self._plan(name, tensors)
        self._name, self._header, self._kind = name, header, _kind_of_header(name, header)
        last, self._last = self._last, None
        self._assembly = last if last is not None and last.again(plan) else Assembly(plan)
        if plan.memory <= _KEPT:
            self._last = self._assembly
        self._labels = plan.places[0][0].nbytes if self._kind == "smashed" else 0

    def _plan(self, name: str, tensors: tuple[bytes, ...]) -> Plan:
        """What the tensor headers ask for, checked: once for each message that is like the ones before it."""
        layouts = [translate.read_layout(tensor) for tensor in tensors]
        total = sum(layout.decoded_nbytes for layout in layouts)
        if total > self._limit_bytes:
            raise WireError(f"{name}: tensors of {total} bytes, this run allows {self._limit_bytes}")
        direction = translate.direction_of(name)
        plan = Plan(layouts, [self.link.agreed(direction, layout) for layout in layouts])
        if len(tensors) <= _FEW:
            if len(self._plans) >= _REMEMBERED:
                self._plans.clear()
            self._plans[name, tensors] = plan
        return plan

    def _finish(self) -> Message:
        assert self._assembly is not None
        packed, schemes, self._assembly = self._assembly.packed, self._assembly.plan.schemes, None
        like = self._likes.pop(self._header.step, None) if self._name == "gradient" else None
        coding = Coding(like=like, training=self._kind not in ("eval", "infer"))
        message = translate.decode(self._name, self._header, packed, schemes, coding)
        self._header = None
        if self._causes is not None:
            self._causes.heard(message, self.heard)
        if isinstance(message, Smashed) and message.needs_grad and self.link.down.uses_like:
            self._keep_like(message.step, message.z)
        self._owed_messages += 1
        return message

    # --- bookkeeping

    def _coding(self, message: Message) -> Coding:
        match message:
            case Smashed(round=r, wave=w, step=s, train=train):
                return Coding(training=train, draw=(*self._draw, "z", r, w, s))
            case Query(step=s):
                return Coding(training=False, draw=(*self._draw, "z", s))
            case Gradient(step=step):
                like = self._likes.pop(step, None)
                return Coding(
                    like=like, draw=(*self._draw, "dz", *self._wave, step), name="dz", residuals=self.residuals
                )
            case Begin(round=r, wave=w) | Done(round=r, wave=w) | Aligned(round=r, wave=w):
                self._wave = (r, w)
                return Coding(draw=(*self._draw, type(message).__name__, r, w), residuals=self.residuals)
            case _:
                return Coding()

    def _remember(self, message: Message, packed: Sequence[Packed]) -> None:
        """Keep the activation as it goes over the wire, for a gradient codec that needs it."""
        if isinstance(message, Smashed) and message.needs_grad and self.link.down.uses_like:
            self._keep_like(message.step, self.link.up.decode(packed[1], Coding(training=message.train)))

    def _keep_like(self, step: int, z: Tensor) -> None:
        """As many as can be under way: batches of a wave that went on without this client are never answered."""
        self._likes.pop(step, None)
        while self._causes is not None and len(self._likes) >= self._causes.window:
            del self._likes[next(iter(self._likes))]
        self._likes[step] = z

    def _acknowledged(self, number: int) -> None:
        if number > self.sent:
            raise WireError(f"peer acknowledges frame {number}, we sent {self.sent}")
        self._forget(number)

    def _forget(self, number: int) -> None:
        self._acked = max(self._acked, number)
        while self._unacked and self._unacked[0].seq <= self._acked:
            self.heard += self._unacked.popleft().ends


def _kind_of_header(name: str, header: Any) -> WireKind:
    """As messages.kind_of, before the body is there."""
    if name == "smashed":
        return "smashed" if header.train or header.needs_grad else "eval"
    if name == "gradient":
        return "gradient" if header.HasField("dz") else "control"
    if name in ("query", "scores"):
        return "infer"
    return "weights" if name in ("begin", "done", "aligned", "lower") and header.weights else "control"


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


def _lies_still(message: Message) -> bool:
    """Whether nobody writes to the message's tensors any more: what a backward pass has still to see, and what one has left.

    Weights are written to by the next step; other activations by any network of the user's that begins in place.
    """
    return isinstance(message, Gradient) or (isinstance(message, Smashed) and message.needs_grad)
