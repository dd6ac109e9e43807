"""The table of all messages: fields of each header and order of its tensors, for writing and for reading."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from sl_common.codec import LinkRole, Packed
from sl_common.errors import WireError
from sl_common.holdings import MAX_BUILDS
from sl_common.messages.inference import Fetch, Lower, Offer, Query, Scores
from sl_common.messages.training import (
    Aligned,
    Alive,
    Begin,
    Bye,
    Done,
    Gradient,
    Late,
    Leave,
    Message,
    Ready,
    Smashed,
    Welcome,
)
from sl_common.names import is_name
from sl_common.proto import split_pb2 as pb
from sl_common.wire.bounds import MAX_LIST, MAX_RUN, MAX_SLOT, MAX_TENSORS
from sl_common.wire.values import (
    BUILD,
    BUILDS,
    DATA_SET,
    DIGESTS,
    DIRECTIVE,
    INPUTS,
    LIST,
    SENTENCE,
    SHA256,
    WORD,
    FieldFormat,
)

_MOST_ENTRIES = {
    "weights": MAX_TENSORS,
    "parts": MAX_LIST,
    "digests": MAX_LIST,
    "snapshots": MAX_LIST,
    "upload": MAX_LIST,
    "builds": MAX_BUILDS,
}


class MessageFormat:
    """Format of one message type: writes its header and reads it back."""

    def __init__(
        self,
        message: type,
        same: str = "",
        /,
        *,
        fields: Mapping[str, FieldFormat] | None = None,
        tensors: str = "",
        optional: bool = False,
        encoded: str = "",
        weights: bool = False,
        role: LinkRole = "state",
        infer: bool = False,
        check: Callable[[Any], None] | None = None,
    ) -> None:
        """`same`: fields that have the same name and value in message and header.

        `fields`: fields with a format of their own.

        `tensors`: fields that hold a tensor, in body order; labels come first, so that they are in the first frame.
        `optional`: the tensor may be None. `encoded`: the message's field for the last tensor in its encoded form.
        `weights`: the tensors are the field `weights`. `role`: the codec of the Link for floating-point tensors.
        `infer`: True for messages of an inference stream, False for training. `check`: raises WireError for an invalid
        header.
        """
        self.message, self.name = message, message.__name__.lower()
        self.role, self.infer, self.has_weights = role, infer, weights
        self._header: Any = getattr(pb, message.__name__)
        self._same, self._fields = tuple(same.split()), dict(fields or {})
        self._tensors, self._optional, self._encoded = tuple(tensors.split()), optional, encoded
        self._check = check
        names = [field.name for field in self._header.DESCRIPTOR.fields]
        self._lists = tuple((name, _MOST_ENTRIES[name]) for name in names if name in _MOST_ENTRIES)

    # --- out

    def tensors_of(self, message: Any) -> list[Tensor]:
        """Return the tensors of a message in body order."""
        if self.has_weights:
            return [tensor for state in message.weights.values() for tensor in state.values()]
        found = [getattr(message, name) for name in self._tensors]
        return [tensor for tensor in found if tensor is not None] if self._optional else found

    def names_of(self, message: Any) -> list[str]:
        """Return the names of a message's weights in body order."""
        return [f"{part}/{name}" for part, state in message.weights.items() for name in state]

    def write(self, message: Any, slots: Sequence[pb.Tensor], header: Any) -> None:
        """Fill an empty header. `slots`: the tensor headers in body order."""
        header.SetInParent()  # marks a header without fields as present
        for name in self._same:
            setattr(header, name, getattr(message, name))
        if not self.has_weights:
            for name, slot in zip(self._tensors, slots, strict=not self._optional):
                getattr(header, name).CopyFrom(slot)
        if self._fields or self.has_weights:
            header.MergeFrom(self._header(**self._formatted(message, slots)))

    def _formatted(self, message: Any, slots: Sequence[pb.Tensor]) -> dict[str, Any]:
        values = {}
        for name, field in self._fields.items():
            value = getattr(message, name)
            values[name] = None if field.optional and value is None else field.write(value)
        if self.has_weights:
            names = [(part, name) for part, state in message.weights.items() for name in state]
            named = zip(names, slots, strict=True)
            values["weights"] = [pb.NamedTensor(part=part, name=name, tensor=slot) for (part, name), slot in named]
            values["parts"] = list(message.weights)
        return values

    # --- in

    def tensor_headers(self, header: Any, tensors: int = MAX_TENSORS) -> tuple[bytes, ...]:
        """Return the tensor headers of a received header as bytes, in body order.

        Raises WireError if a list or a tensor header is too long. `tensors`: most entries of the weights.
        """
        for field, allowed in self._lists:
            most = min(allowed, tensors) if field == "weights" else allowed
            if (count := len(getattr(header, field))) > most:
                raise WireError(f"{self.name}.{field} has {count} entries, at most {most} are allowed")
        slots = tuple([slot.SerializeToString() for slot in self._slots(header)])
        for slot in slots:
            if len(slot) > MAX_SLOT:  # the bytes are kept as a key, with any unknown fields
                raise WireError(f"{self.name}: a tensor header of {len(slot)} bytes, at most {MAX_SLOT} are allowed")
        return slots

    def _slots(self, header: Any) -> list[pb.Tensor]:
        if self.has_weights:
            return [named.tensor for named in header.weights]
        return [getattr(header, name) for name in self._tensors if not self._optional or header.HasField(name)]

    def read(self, header: Any, tensors: Sequence[Tensor], packed: Sequence[Packed]) -> Message:
        """Return the message of a header and its decoded tensors. `packed`: the encoded tensors.

        Raises WireError if the header is invalid.
        """
        if self._check is not None:
            self._check(header)
        values = {name: getattr(header, name) for name in self._same}
        for name, field in self._fields.items():
            given = not field.optional or header.HasField(name)
            values[name] = field.read(f"{self.name}.{name}", getattr(header, name)) if given else None
        if self.has_weights:
            values["weights"] = _by_part(header, tensors)
        else:
            values.update(zip(self._tensors, tensors, strict=not self._optional))
        if self._encoded:
            values[self._encoded] = packed[-1]
        message: Message = self.message(**values)
        return message


def _by_part(header: Any, tensors: Iterable[Tensor]) -> dict[str, dict[str, Tensor]]:
    weights: dict[str, dict[str, Tensor]] = {part: {} for part in header.parts}
    for named, tensor in zip(header.weights, tensors, strict=True):
        if named.part not in weights or named.name in weights[named.part]:
            whose = f"{named.part:.80}/{named.name:.80}"
            raise WireError(f"weights name {whose} twice, or a part that is not in {list(weights)!s:.200}")
        weights[named.part][named.name] = tensor
    return weights


def _check_welcome(header: pb.Welcome) -> None:
    client, run = header.client, header.run
    if not is_name(client) or len(run) > MAX_RUN:
        raise WireError(f"welcome names the client {client[:80]!r} and the run {run[:80]!r}: no names, or too long")


_BEGIN = "round rounds wave wave_size evaluate steps first lr slice slices samples checkpoint restore intact"
_READY = {"snapshots": LIST, "data": DATA_SET, "builds": BUILDS, "torch": WORD}
_OFFER = {"lower_sha256": SHA256, "inputs": INPUTS, "build": BUILD, "torch": WORD}

_TABLE = (
    # Messages of a client
    MessageFormat(Ready, "samples batches intact", fields=_READY),
    MessageFormat(Smashed, "step round wave train needs_grad", tensors="y z", encoded="packed", role="up"),
    MessageFormat(Done, "round wave steps samples loss_sum", fields={"digests": DIGESTS}, weights=True),
    MessageFormat(Alive, "samples"),
    MessageFormat(Leave, fields={"reason": SENTENCE}),
    MessageFormat(Fetch, infer=True),
    MessageFormat(Query, "step", tensors="z", role="up", infer=True),
    # Messages of a server
    MessageFormat(Welcome, "config client shard shards run", check=_check_welcome),
    MessageFormat(Begin, _BEGIN, fields={"upload": LIST, "directive": DIRECTIVE}, weights=True),
    MessageFormat(Gradient, "step loss correct", tensors="dz", optional=True, role="down"),
    MessageFormat(Aligned, "round wave before after", weights=True),
    MessageFormat(Late, "round wave"),
    MessageFormat(Bye, "finished", fields={"reason": SENTENCE}),
    MessageFormat(Offer, "config", fields=_OFFER, infer=True),
    MessageFormat(Lower, weights=True, infer=True),
    MessageFormat(Scores, "step", tensors="scores", role="down", infer=True),
)
BY_TYPE = {one.message: one for one in _TABLE}
BY_NAME = {one.name: one for one in _TABLE}
