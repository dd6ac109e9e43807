"""Bytes by kind: kind of a message, bytes of a frame, and bytes of a message's tensors without a codec."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from sl_common.messages.inference import Lower, Query, Scores
from sl_common.messages.training import Aligned, Begin, Done, Gradient, Message, Smashed

WireKind = Literal["smashed", "labels", "gradient", "weights", "eval", "infer", "control"]
WIRE_KINDS: tuple[WireKind, ...] = ("smashed", "labels", "gradient", "weights", "eval", "infer", "control")
FrameTally = tuple[tuple[WireKind, int], ...]  # bytes of one frame on the wire, by kind
GRPC_PREFIX = 5  # bytes that gRPC puts before each message: a flag and the length


def kind_of(message: Message) -> WireKind:
    """Return the kind that the bytes of a message count as. The labels of a Smashed count separately."""
    match message:
        case Smashed(train=False, needs_grad=False):
            return "eval"
        case Smashed():
            return "smashed"
        case Gradient(dz=Tensor()):
            return "gradient"
        case Begin(weights=weights) | Done(weights=weights) | Aligned(weights=weights) | Lower(weights=weights) if (
            weights
        ):
            return "weights"
        case Query() | Scores():
            return "infer"
        case _:
            return "control"


def payload_of(message: Message) -> dict[WireKind, int]:
    """Return the bytes of a message's tensors by kind, as if they were sent as float32.

    Labels, integers, complex numbers and float8 count at their own size.
    """

    def size(tensor: Tensor) -> int:
        return tensor.numel() * (
            4 if tensor.is_floating_point() and tensor.element_size() > 1 else tensor.element_size()
        )

    kind = kind_of(message)
    match message:
        case Smashed(z=z, y=y):
            return {"eval": size(z) + size(y)} if kind == "eval" else {kind: size(z), "labels": size(y)}
        case Gradient(dz=dz) if dz is not None:
            return {kind: size(dz)}
        case Query(z=tensor) | Scores(scores=tensor):
            return {kind: size(tensor)}
        case Begin(weights=weights) | Done(weights=weights) | Aligned(weights=weights) | Lower(weights=weights):
            return {kind: sum(size(t) for state in weights.values() for t in state.values())}
        case _:
            return {}


def kind_of_header(name: str, header: Any) -> WireKind:
    """Return the kind of a message of which only the header has been received."""
    if name == "smashed":
        return "smashed" if header.train or header.needs_grad else "eval"
    if name == "gradient":
        return "gradient" if header.HasField("dz") else "control"
    if name in ("query", "scores"):
        return "infer"
    return "weights" if name in ("begin", "done", "aligned", "lower") and header.weights else "control"


def tally_of(kind: WireKind, nbytes: int, labels: int = 0) -> FrameTally:
    """Return the bytes by kind of a frame of `nbytes`, of which `labels` are labels. gRPC's prefix is included."""
    whole = nbytes + GRPC_PREFIX
    return ((kind, whole - labels), ("labels", labels)) if labels else ((kind, whole),)
