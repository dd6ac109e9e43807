"""One message <-> one protobuf header and the tensors that follow it. Nothing is numbered, cut or kept here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from typing import Any

from google.protobuf.descriptor import Descriptor
from torch import Tensor

from sl_common.codec import Coding, Layout, Link, LinkRole, Packed, Scheme
from sl_common.codec.packed import DTYPES, fits
from sl_common.errors import WireError
from sl_common.holdings import MAX_BUILDS, MAX_MEANS, MAX_PROBE, MAX_SCALES, Build, DataSet, Inputs
from sl_common.messages.inference import Fetch, Lower, Offer, Query, Scores
from sl_common.messages.training import (
    Aligned,
    Alive,
    Begin,
    Bye,
    Directive,
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
from sl_common.tensors import StateDict

_DTYPE_NUMBER = {dtype: number for number, dtype in enumerate(DTYPES, start=1)}
_WITH_WEIGHTS = ("begin", "done", "aligned", "lower")
_LAYOUTS = 4096  # tensor headers that are remembered: a step has the same few again and again


MAX_TENSORS = 1 << 14  # of one message
MAX_LIST = 1 << 10  # of anything else that a header repeats
MAX_WORD = 64  # characters of a codec's name, bytes of its parameters
MAX_SENTENCE = 2000  # characters of a reason, which people read; the rest is cut off
MAX_RUN = 200  # characters of a run's name for itself
MAX_SLOT = 512  # bytes of a tensor's header, of which the checks below let through no more than half
MAX_OTHERS = 4 * MAX_LIST + 64  # entries of a header that are not tensors: its lists, and fields that it has once
_REPEATED = {
    "weights": MAX_TENSORS,
    "parts": MAX_LIST,
    "digests": MAX_LIST,
    "snapshots": MAX_LIST,
    "upload": MAX_LIST,
    "builds": MAX_BUILDS,
}
_ASKED = ("send", "update", "align", "warm")  # of a directive, on the wire


_DIRECTIONS: dict[str, LinkRole] = {"smashed": "up", "query": "up", "gradient": "down", "scores": "down"}


def direction_of(name: str) -> LinkRole:
    """Which codec of the Link a header's floating-point tensors travel in."""
    return _DIRECTIONS.get(name, "state")


# --- out


def encode(message: Message, link: Link, coding: Coding) -> tuple[str, Any, list[Packed]]:
    """The header field's name, the header, and its tensors in body order. Raises Diverged on NaN or Inf."""
    name, header, tensors = _headers[type(message)](message)
    direction = direction_of(name)
    if name in _WITH_WEIGHTS:
        names = [f"{named.part}/{named.name}" for named in header.weights]
        codings = [replace(coding, name=own, draw=(*coding.draw, own)) for own in names]
        packed = [_encode(tensor, link, direction, own) for tensor, own in zip(tensors, codings, strict=True)]
    else:
        packed = [_encode(tensor, link, direction, coding) for tensor in tensors]
    for slot, one in zip(_slots(name, header), packed, strict=True):
        slot.CopyFrom(_written(one.layout))
    return name, header, packed


def _encode(tensor: Tensor, link: Link, direction: LinkRole, coding: Coding) -> Packed:
    return link.chosen(direction, tensor).encode(tensor.resolve_neg(), coding)


@lru_cache(maxsize=_LAYOUTS)
def _written(layout: Layout) -> pb.Tensor:
    return pb.Tensor(
        codec=layout.codec,
        dtype=_DTYPE_NUMBER[layout.dtype],  # type: ignore[arg-type]
        shape=layout.shape,
        nbytes=layout.nbytes,
        params=layout.params,
    )


def _slots(name: str, header: Any) -> list[pb.Tensor]:
    """The tensor headers of a message, in body order: labels first, so that they lie in the first frame."""
    match name:
        case "smashed":
            return [header.y, header.z]
        case "gradient":
            return [header.dz] if header.HasField("dz") else []
        case "query":
            return [header.z]
        case "scores":
            return [header.scores]
        case "begin" | "done" | "aligned" | "lower":
            return [named.tensor for named in header.weights]
        case _:
            return []


def _flatten(weights: Mapping[str, StateDict], header: Any) -> list[Tensor]:
    header.parts.extend(weights)
    for part, state in weights.items():
        for name in state:
            header.weights.add(part=part, name=name)
    return [tensor for state in weights.values() for tensor in state.values()]


def _ready(m: Ready) -> tuple[str, Any, list[Tensor]]:
    header = pb.Ready(
        samples=m.samples,
        batches=m.batches,
        snapshots=m.snapshots,
        intact=m.intact,
        data=None if m.data is None else _data_set(m.data),
        builds=[pb.Build(**asdict(build)) for build in m.builds],
        torch=m.torch,
    )
    return "ready", header, []


def _data_set(m: DataSet) -> pb.DataSet:
    return pb.DataSet(**(asdict(m) | {"inputs": pb.Inputs(**asdict(m.inputs))}))


def _offer(m: Offer) -> tuple[str, Any, list[Tensor]]:
    inputs = None if m.inputs is None else pb.Inputs(**asdict(m.inputs))
    build = None if m.build is None else pb.Build(**asdict(m.build))
    header = pb.Offer(config=m.config, lower_sha256=m.lower_sha256, inputs=inputs, build=build, torch=m.torch)
    return "offer", header, []


def _smashed(m: Smashed) -> tuple[str, Any, list[Tensor]]:
    header = pb.Smashed(step=m.step, round=m.round, wave=m.wave, train=m.train, needs_grad=m.needs_grad)
    return "smashed", header, [m.y, m.z]


def _done(m: Done) -> tuple[str, Any, list[Tensor]]:
    header = pb.Done(round=m.round, wave=m.wave, steps=m.steps, samples=m.samples, loss_sum=m.loss_sum)
    for part, sha256 in m.digests.items():
        header.digests.add(part=part, sha256=sha256)
    return "done", header, _flatten(m.weights, header)


def _begin(m: Begin) -> tuple[str, Any, list[Tensor]]:
    header = pb.Begin(
        round=m.round,
        rounds=m.rounds,
        wave=m.wave,
        wave_size=m.wave_size,
        evaluate=m.evaluate,
        steps=m.steps,
        first=m.first,
        lr=m.lr,
        upload=m.upload,
        directive=pb.Directive(**{name: getattr(m.directive, name) for name in _ASKED}),
        slice=m.slice,
        slices=m.slices,
        samples=m.samples,
        checkpoint=m.checkpoint,
        restore=m.restore,
        intact=m.intact,
    )
    return "begin", header, _flatten(m.weights, header)


def _gradient(m: Gradient) -> tuple[str, Any, list[Tensor]]:
    header = pb.Gradient(step=m.step, loss=m.loss, correct=m.correct)
    if m.dz is None:
        return "gradient", header, []
    header.dz.SetInParent()
    return "gradient", header, [m.dz]


def _aligned(m: Aligned) -> tuple[str, Any, list[Tensor]]:
    header = pb.Aligned(round=m.round, wave=m.wave, before=m.before, after=m.after)
    return "aligned", header, _flatten(m.weights, header)


def _welcome(m: Welcome) -> tuple[str, Any, list[Tensor]]:
    return "welcome", pb.Welcome(config=m.config, client=m.client, shard=m.shard, shards=m.shards, run=m.run), []


def _lower(m: Lower) -> tuple[str, Any, list[Tensor]]:
    header = pb.Lower()
    return "lower", header, _flatten(m.weights, header)


_headers: dict[type, Callable[[Any], tuple[str, Any, list[Tensor]]]] = {
    Ready: _ready,
    Smashed: _smashed,
    Done: _done,
    Alive: lambda m: ("alive", pb.Alive(samples=m.samples), []),
    Leave: lambda m: ("leave", pb.Leave(reason=m.reason), []),
    Welcome: _welcome,
    Late: lambda m: ("late", pb.Late(round=m.round, wave=m.wave), []),
    Begin: _begin,
    Gradient: _gradient,
    Aligned: _aligned,
    Bye: lambda m: ("bye", pb.Bye(reason=m.reason, finished=m.finished), []),
    Offer: _offer,
    Fetch: lambda _: ("fetch", pb.Fetch(), []),
    Lower: _lower,
    Query: lambda m: ("query", pb.Query(step=m.step), [m.z]),
    Scores: lambda m: ("scores", pb.Scores(step=m.step), [m.scores]),
}


# --- in


def tensor_headers(name: str, header: Any, tensors: int = MAX_TENSORS) -> tuple[bytes, ...]:
    """The tensor headers of a received message as bytes, in body order. Raises WireError where there are too many, or one is too long."""
    for field in _repeated(header.DESCRIPTOR):
        most = min(_REPEATED[field], tensors) if field == "weights" else _REPEATED[field]
        if (count := len(getattr(header, field))) > most:
            raise WireError(f"{name}.{field} has {count} entries, at most {most} are allowed")
    slots = tuple(slot.SerializeToString() for slot in _slots(name, header))
    for slot in slots:
        if len(slot) > MAX_SLOT:  # or fields that nobody reads would be remembered with it
            raise WireError(f"{name}: a tensor header of {len(slot)} bytes, at most {MAX_SLOT} are allowed")
    return slots


@lru_cache  # one entry for each kind of message
def _repeated(descriptor: Descriptor) -> tuple[str, ...]:
    return tuple(field.name for field in descriptor.fields if field.name in _REPEATED)


def read_layout(data: bytes) -> Layout:
    """A tensor header. Raises WireError on an unknown dtype or an absurd shape."""
    slot = pb.Tensor.FromString(data)
    if not 1 <= slot.dtype <= len(DTYPES):
        raise WireError(f"tensor header has dtype number {slot.dtype}, known are 1 to {len(DTYPES)}")
    shape = tuple(slot.shape)
    if not fits(shape) or len(slot.params) > MAX_WORD:
        raise WireError(f"tensor header has shape {shape[:20]} and {len(slot.params)} bytes of parameters")
    if len(slot.codec) > MAX_WORD:  # or whoever thinks up codecs fills memory
        raise WireError(f"tensor header names a codec with {len(slot.codec)} characters")
    return Layout(codec=slot.codec, dtype=DTYPES[slot.dtype - 1], shape=shape, nbytes=slot.nbytes, params=slot.params)


def decode(name: str, header: Any, packed: Sequence[Packed], schemes: Sequence[Scheme], coding: Coding) -> Message:
    """The message of a whole body, by the schemes that its tensors were agreed to be in. Raises WireError if they contradict."""
    tensors = [scheme.decode(one, coding) for scheme, one in zip(schemes, packed, strict=True)]
    if name == "smashed":
        return _to_smashed(header, tensors, packed[1])
    return _messages[name](header, tensors)


def _unflatten(header: Any, tensors: Iterable[Tensor]) -> dict[str, dict[str, Tensor]]:
    weights: dict[str, dict[str, Tensor]] = {part: {} for part in header.parts}
    for named, tensor in zip(header.weights, tensors, strict=True):
        if named.part not in weights or named.name in weights[named.part]:
            whose = f"{named.part:.80}/{named.name:.80}"
            raise WireError(f"weights name {whose} twice, or a part that is not in {list(weights)!s:.200}")
        weights[named.part][named.name] = tensor
    return weights


def _to_smashed(h: pb.Smashed, t: list[Tensor], z: Packed) -> Smashed:
    flags = {"train": h.train, "needs_grad": h.needs_grad}
    return Smashed(step=h.step, round=h.round, wave=h.wave, y=t[0], z=t[1], packed=z, **flags)


def _to_done(h: pb.Done, t: list[Tensor]) -> Done:
    return Done(
        round=h.round,
        wave=h.wave,
        steps=h.steps,
        samples=h.samples,
        loss_sum=h.loss_sum,
        weights=_unflatten(h, t),
        digests={d.part: d.sha256 for d in h.digests},
    )


def _to_begin(h: pb.Begin, t: list[Tensor]) -> Begin:
    return Begin(
        round=h.round,
        rounds=h.rounds,
        wave=h.wave,
        wave_size=h.wave_size,
        evaluate=h.evaluate,
        steps=h.steps,
        first=h.first,
        lr=h.lr,
        weights=_unflatten(h, t),
        upload=tuple(h.upload),
        directive=Directive(**{name: getattr(h.directive, name) for name in _ASKED}),
        slice=h.slice,
        slices=h.slices,
        samples=h.samples,
        checkpoint=h.checkpoint,
        restore=h.restore,
        intact=h.intact,
    )


def _to_ready(h: pb.Ready, _: list[Tensor]) -> Ready:
    return Ready(
        samples=h.samples,
        batches=h.batches,
        snapshots=tuple(h.snapshots),
        intact=h.intact,
        data=_to_data_set(h.data) if h.HasField("data") else None,
        builds=tuple(_to_build(build) for build in h.builds),
        torch=_version("ready", h.torch),
    )


def _version(name: str, torch: str) -> str:
    if len(torch) > MAX_WORD:
        raise WireError(f"{name}.torch has {len(torch)} characters, at most {MAX_WORD} are allowed")
    return torch


def _to_data_set(h: pb.DataSet) -> DataSet:
    found = DataSet(
        train=h.train,
        test=h.test,
        train_sha256=h.train_sha256,
        test_sha256=h.test_sha256,
        means=_numbers("data.means", h.means, MAX_MEANS),
        inputs=_to_inputs(h.inputs),
    )
    found.check()
    return found


def _to_inputs(h: pb.Inputs) -> Inputs:
    mean, std = (_numbers(f"inputs.{name}", getattr(h, name), MAX_SCALES) for name in ("mean", "std"))
    found = Inputs(dtype=h.dtype, low=h.low, high=h.high, mean=mean, std=std, digest=h.digest)
    found.check()
    return found


def _to_build(h: pb.Build) -> Build:
    found = Build(
        part=h.part[:MAX_WORD],
        layout_sha256=h.layout_sha256,
        layout=h.layout,
        modules_sha256=h.modules_sha256,
        modules=h.modules,
        probe=_numbers("build.probe", h.probe, MAX_PROBE),
    )
    found.check()
    return found


def _numbers(name: str, found: Sequence[float], most: int) -> tuple[float, ...]:
    """Raises WireError before a long list becomes Python's numbers."""
    if len(found) > most:
        raise WireError(f"{name} has {len(found)} numbers, at most {most} are allowed")
    return tuple(found)


def _to_welcome(h: pb.Welcome, _: list[Tensor]) -> Welcome:
    if not is_name(h.client) or len(h.run) > MAX_RUN:
        raise WireError(f"welcome names the client {h.client[:80]!r} and the run {h.run[:80]!r}: no names, or too long")
    return Welcome(config=h.config, client=h.client, shard=h.shard, shards=h.shards, run=h.run)


def _to_offer(h: pb.Offer, _: list[Tensor]) -> Offer:
    if len(h.lower_sha256) not in (0, 32):
        raise WireError(f"offer.lower_sha256 has {len(h.lower_sha256)} bytes, must have 32 or none")
    inputs = _to_inputs(h.inputs) if h.HasField("inputs") else None
    build = _to_build(h.build) if h.HasField("build") else None
    return Offer(
        config=h.config, lower_sha256=h.lower_sha256, inputs=inputs, build=build, torch=_version("offer", h.torch)
    )


def _to_aligned(h: pb.Aligned, t: list[Tensor]) -> Aligned:
    return Aligned(round=h.round, wave=h.wave, weights=_unflatten(h, t), before=h.before, after=h.after)


_messages: dict[str, Callable[[Any, list[Tensor]], Message]] = {
    "ready": _to_ready,
    "done": _to_done,
    "alive": lambda h, _: Alive(samples=h.samples),
    "leave": lambda h, _: Leave(reason=h.reason[:MAX_SENTENCE]),
    "welcome": _to_welcome,
    "begin": _to_begin,
    "gradient": lambda h, t: Gradient(step=h.step, loss=h.loss, correct=h.correct, dz=t[0] if t else None),
    "aligned": _to_aligned,
    "late": lambda h, _: Late(round=h.round, wave=h.wave),
    "bye": lambda h, _: Bye(reason=h.reason[:MAX_SENTENCE], finished=h.finished),
    "offer": _to_offer,
    "fetch": lambda *_: Fetch(),
    "lower": lambda h, t: Lower(weights=_unflatten(h, t)),
    "query": lambda h, t: Query(step=h.step, z=t[0]),
    "scores": lambda h, t: Scores(step=h.step, scores=t[0]),
}
