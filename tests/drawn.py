"""Messages of every type as hypothesis draws them, and what it means that two of them are the same."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor
from unions import members

from sl_common.codec import Link
from sl_common.codec.packed import DTYPES
from sl_common.messages.inference import Fetch, InferenceReply, InferenceRequest, Lower, Offer, Query, Scores
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
    ToClient,
    ToServer,
    Welcome,
)
from sl_common.names import is_name
from sl_common.wire import CHUNK_BYTES, Endpoint

Side = Literal["client", "server"]
PEER: dict[Side, Side] = {"client": "server", "server": "client"}
LAW = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # laws know no wall clock

# --- two real ends


def endpoint(
    side: Side, *, limit_bytes: int = 1 << 26, chunk_bytes: int = CHUNK_BYTES, call: Literal["train", "infer"] = "train"
) -> Endpoint:
    return Endpoint(side, link=Link(), limit_bytes=limit_bytes, chunk_bytes=chunk_bytes, call=call)


def side_of(message: Message) -> Side:
    """Who says such a thing."""
    return "client" if isinstance(message, members(ToServer | InferenceRequest)) else "server"


def ends_for(message: Message, *, chunk_bytes: int = CHUNK_BYTES) -> tuple[Endpoint, Endpoint]:
    """(who says it, who hears it)."""
    side, call = (
        side_of(message),
        "infer" if isinstance(message, members(InferenceRequest | InferenceReply)) else "train",
    )
    return endpoint(side, chunk_bytes=chunk_bytes, call=call), endpoint(PEER[side], call=call)


# --- equality


def content(value: Any) -> Any:
    """All that a message says, as plain comparable values: tensors by their bytes, floats by their bits, maps in order."""
    if isinstance(value, Tensor):
        return str(value.dtype), tuple(value.shape), bytes_of(value)
    if dataclasses.is_dataclass(value):
        said = [
            f.name for f in dataclasses.fields(value) if f.name != "packed"
        ]  # the same tensor again, where it was heard
        return type(value).__name__, [(name, content(getattr(value, name))) for name in said]
    if isinstance(value, Mapping):
        return [(key, content(one)) for key, one in value.items()]
    return repr(value)


def bytes_of(tensor: Tensor) -> bytes:
    flat = tensor.detach().contiguous().view(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


# --- tensors


def random_tensor(dtype: torch.dtype, shape: Sequence[int], seed: int) -> Tensor:
    """Any bit pattern that the type has, NaN and Inf included."""
    generator = torch.Generator().manual_seed(seed)
    nbytes = math.prod(shape) * dtype.itemsize
    data = torch.randint(0, 256, (nbytes,), dtype=torch.uint8, generator=generator)
    return (data & 1 if dtype == torch.bool else data).view(dtype).reshape(tuple(shape))


def normal(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers as weights and activations are."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@st.composite
def tensors(draw: st.DrawFn, dtypes: Sequence[torch.dtype] = DTYPES) -> Tensor:
    """0-d to 4-d, some of them without elements, some not contiguous."""
    shape = draw(st.lists(st.integers(0, 3), max_size=4))
    tensor = random_tensor(draw(st.sampled_from(dtypes)), shape, draw(st.integers(0, 2**32)))
    return tensor.transpose(0, -1) if len(shape) > 1 and draw(st.booleans()) else tensor


# --- messages

u32 = st.integers(0, 2**32 - 1)
client_names = st.text(max_size=64).filter(is_name)
u64 = st.integers(0, 2**64 - 1)
names = st.text(max_size=8)
states = st.dictionaries(names, tensors(), min_size=1, max_size=3)
weights = st.dictionaries(names, states, max_size=2)

DRAWN: dict[type, st.SearchStrategy[Any]] = {
    Ready: st.builds(
        Ready, samples=u64, batches=u64, snapshots=st.lists(u64, max_size=3).map(tuple), intact=st.booleans()
    ),
    Smashed: st.builds(
        Smashed,
        step=u64,
        z=tensors(),
        y=tensors([torch.int64]),
        round=u32,
        wave=u32,
        train=st.booleans(),
        needs_grad=st.booleans(),
    ),
    Done: st.builds(
        Done,
        round=u32,
        wave=u32,
        steps=u64,
        samples=u64,
        loss_sum=st.floats(),
        weights=weights,
        digests=st.dictionaries(names, st.binary(max_size=32), max_size=2),
    ),
    Alive: st.builds(Alive, samples=u64),
    Leave: st.builds(Leave, reason=st.text()),
    Welcome: st.builds(
        Welcome, config=st.text(), client=client_names, shard=u32, shards=u32, run=st.text(max_size=200)
    ),
    Begin: st.builds(
        Begin,
        round=u32,
        rounds=u32,
        wave=u32,
        wave_size=u32,
        evaluate=st.booleans(),
        steps=u64,
        first=u64,
        lr=st.floats(),
        weights=weights,
        upload=st.lists(names, max_size=3).map(tuple),
        directive=st.builds(
            Directive, send=st.booleans(), update=st.booleans(), align=st.booleans(), warm=st.booleans()
        ),
        slice=u32,
        slices=u32,
        samples=u64,
        checkpoint=u64,
        restore=u64,
        intact=st.booleans(),
    ),
    Gradient: st.builds(Gradient, step=u64, loss=st.floats(), correct=u64, dz=st.none() | tensors()),
    Aligned: st.builds(Aligned, round=u32, wave=u32, weights=weights, before=st.floats(), after=st.floats()),
    Late: st.builds(Late, round=u32, wave=u32),
    Bye: st.builds(Bye, reason=st.text(), finished=st.booleans()),
    Offer: st.builds(Offer, config=st.text(), lower_sha256=st.sampled_from([b"", bytes(range(32))])),
    Fetch: st.builds(Fetch),
    Lower: st.builds(Lower, weights=weights),
    Query: st.builds(Query, step=u64, z=tensors()),
    Scores: st.builds(Scores, step=u64, scores=tensors()),
}
said_by: dict[Side, st.SearchStrategy[Any]] = {
    "client": st.one_of([DRAWN[kind] for kind in members(ToServer)]),
    "server": st.one_of([DRAWN[kind] for kind in members(ToClient)]),
}
messages: st.SearchStrategy[Any] = st.one_of(list(DRAWN.values()))
