"""Received frames: parsed, checked against the limits and codecs of this run, and assembled into one message at a time.

Law: every limit is checked before memory is allocated or work is done for a header.
"""

from __future__ import annotations

from typing import Any, Literal

from google.protobuf.message import DecodeError

from sl_common.codec import Coding, Link
from sl_common.errors import WireError
from sl_common.messages.training import Message
from sl_common.wire import translate
from sl_common.wire.accounting import WireKind, kind_of_header
from sl_common.wire.assembly import Assembly, Plan
from sl_common.wire.bounds import MAX_OTHERS, MAX_TENSORS
from sl_common.wire.fields import check_entries, split_frame
from sl_common.wire.formats import BY_NAME, MessageFormat
from sl_common.wire.frame import MAX_CHUNK
from sl_common.wire.greeting import refused

CallKind = Literal["train", "infer"]

_MAX_PLANS = 64  # checked combinations of a message and its tensor headers that are cached
_MAX_PLAN_TENSORS = 4  # at most, of a message that is cached: batches are, weights are not
# Largest body whose memory is kept for the next one; for larger ones the copy costs more than the allocation.
_MAX_REUSED_BYTES = 1 << 18


class Incoming:
    """Receives the frames of one endpoint. At most one message is incomplete at any time."""

    def __init__(self, frame: type, link: Link, call: CallKind, limit_bytes: int, limit_tensors: int) -> None:
        """`frame`: protobuf class of a received frame.

        `call`: purpose of the stream; messages of the other purpose are refused.
        """
        self._frame: Any = frame
        self._link, self._call = link, call
        self._limit_bytes, self._limit_tensors = limit_bytes, min(limit_tensors, MAX_TENSORS)
        self._plans: dict[tuple[str, tuple[bytes, ...]], Plan] = {}
        self._form: MessageFormat = BY_NAME["late"]
        self.name = ""
        self.header: Any = None
        self.kind: WireKind = "control"
        self.missing = 0  # bytes that the incomplete message still lacks; 0 if there is none
        self._assembly: Assembly | None = None  # of the incomplete message
        self._last: Assembly | None = None  # its memory may be used again
        self._labels = 0  # bytes of labels that this message still lacks

    def parse(self, data: bytes) -> tuple[Any, str | None, memoryview]:
        """Return the parsed frame, the name of its header (None without one) and its chunk.

        Raises WireError if the frame is malformed, Refused if it is a refusal.
        """
        head, chunk = split_frame(data)
        check_entries(head, self._limit_tensors + MAX_OTHERS)
        try:
            frame = self._frame.FromString(head)
        except DecodeError as error:
            raise WireError(f"frame of {len(data)} bytes is not protobuf") from error
        name = frame.WhichOneof("header")
        if name in ("hello", "greeting"):
            raise WireError(f"{name} in the middle of a stream")
        if name == "refusal":
            raise refused(frame.refusal)
        return frame, name, chunk or memoryview(frame.chunk)

    def add(self, frame: Any, name: str | None, chunk: memoryview) -> int:
        """Add the next frame to its message and return how many bytes of its chunk are labels.

        Raises WireError if it does not continue the message, is too large, or is not what this run agreed on.
        """
        if name is not None:
            self._start(name, getattr(frame, name))
        elif self._assembly is None:
            raise WireError(f"frame {frame.seq} has neither a header nor a message to go on with")
        if len(chunk) > MAX_CHUNK:
            raise WireError(f"chunk of {len(chunk)} bytes, at most {MAX_CHUNK} are allowed")
        assert self._assembly is not None
        if name is None and not chunk:
            raise WireError(f"frame {frame.seq} is empty")
        labels = min(self._labels, len(chunk))
        self._labels -= labels
        self._assembly.add(chunk)
        self.missing = self._assembly.missing
        return labels

    def _start(self, name: str, header: Any) -> None:
        """Check a header, then allocate memory for its body."""
        if self._assembly is not None:
            raise WireError(f"{name} begins while {self._assembly.missing} bytes of {self.name} are missing")
        form = BY_NAME[name]
        if form.infer != (self._call == "infer"):
            raise WireError(f"{name} is not said on a stream to {self._call}")
        tensors = form.tensor_headers(header, self._limit_tensors)
        plan = self._plans.get((name, tensors)) or self._plan(form, tensors)
        self._form, self.name, self.header, self.kind = form, name, header, kind_of_header(name, header)
        last, self._last = self._last, None
        self._assembly = last if last is not None and last.reuse(plan) else Assembly(plan)
        if plan.memory <= _MAX_REUSED_BYTES:
            self._last = self._assembly
        self._labels = plan.places[0][0].nbytes if self.kind == "smashed" else 0

    def _plan(self, form: MessageFormat, tensors: tuple[bytes, ...]) -> Plan:
        """Check the tensor headers of a message and plan its body.

        The result is cached for messages with the same headers.
        """
        layouts = [translate.read_layout(tensor) for tensor in tensors]
        total = sum(layout.decoded_nbytes for layout in layouts)
        if total > self._limit_bytes:
            raise WireError(f"{form.name}: tensors of {total} bytes, this run allows {self._limit_bytes}")
        plan = Plan(layouts, [self._link.agreed(form.role, layout) for layout in layouts])
        if len(tensors) <= _MAX_PLAN_TENSORS:
            if len(self._plans) >= _MAX_PLANS:
                self._plans.clear()
            self._plans[form.name, tensors] = plan
        return plan

    def finish(self, coding: Coding) -> Message:
        """Decode the message, which is complete. Raises WireError if its body contradicts its header."""
        assert self._assembly is not None
        assembly, self._assembly = self._assembly, None
        header, self.header = self.header, None
        return translate.decode(self._form, header, assembly.packed, assembly.plan.schemes, coding)
