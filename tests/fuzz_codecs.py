"""Random headers and bytes into every decoder: WireError or a finite tensor of the header's shape, never a crash or much memory.

A part of the inputs goes through a real endpoint.
"""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import torch
from fuzz_wire import Target
from test_codec import CODECS

from sl_common.codec import Coding, Layout, Link, Packed, Scheme
from sl_common.codec.packed import DTYPES
from sl_common.errors import WireError
from sl_common.kinds import is_real
from sl_common.proto import split_pb2 as pb
from sl_common.tensors import aligned_buffer
from sl_common.wire import Endpoint

LIMIT = 1 << 17  # bytes of a decoded tensor that the imagined run allows
FLOATS = [dtype for dtype in DTYPES if is_real(dtype)]
SHAPES: list[tuple[int, ...]] = [(), (0,), (1,), (7,), (4, 9), (3, 0, 2), (2, 3, 4, 5), (5, 64)]

MANY: list[tuple[int, ...]] = [(1 << 14,), (1 << 14, 1), (1, 1 << 14), (1 << 13, 2), (2, 1 << 13), (1 << 10, 16)]


def shape_of(rng: np.random.Generator) -> tuple[int, ...]:
    """Of a small tensor, now and then of one with many rows, or with many elements in one."""
    shapes = MANY if rng.integers(50) == 0 else SHAPES
    return shapes[rng.integers(len(shapes))]


def layout_of(codec: Scheme, rng: np.random.Generator) -> Layout:
    """A header that the codec wrote, as it is or with one thing changed."""
    shape = shape_of(rng)
    dtype = FLOATS[rng.integers(len(FLOATS))]
    x = torch.from_numpy(rng.standard_normal(shape)).to(dtype)
    layout = codec.encode(x, coding_of(codec, shape, dtype)).layout
    match rng.integers(8):
        case 0:
            return replace(layout, nbytes=int(rng.integers(0, 2 * layout.nbytes + 3)))
        case 1:
            return replace(layout, params=rng.bytes(len(layout.params)))
        case 2:
            return replace(layout, params=rng.bytes(int(rng.integers(0, 65))))
        case 3:
            return replace(layout, shape=shape_of(rng))
        case 4:
            return replace(layout, dtype=DTYPES[rng.integers(len(DTYPES))])
        case 5 if layout.params:
            params = bytearray(layout.params)
            params[rng.integers(len(params))] ^= 1 << rng.integers(8)
            return replace(layout, params=bytes(params))
        case _:
            return layout


def coding_of(codec: Scheme, shape: tuple[int, ...], dtype: torch.dtype) -> Coding:
    like = torch.ones(shape, dtype=dtype) if codec.uses_like else None
    return Coding(like=like, draw=(1,))


def body_of(codec: Scheme, layout: Layout, rng: np.random.Generator) -> bytes:
    """Noise, or what the codec made of a tensor with a few bits flipped."""
    if rng.integers(2) or not is_real(layout.dtype):
        return rng.bytes(layout.nbytes)
    x = torch.from_numpy(rng.standard_normal(layout.shape)).to(layout.dtype)
    body = bytearray(codec.encode(x, coding_of(codec, layout.shape, layout.dtype)).data)[: layout.nbytes]
    body += bytes(layout.nbytes - len(body))
    for _ in range(int(rng.integers(3))):
        if body:
            body[rng.integers(len(body))] ^= 1 << rng.integers(8)
    return bytes(body)


def directly(codec: Scheme, layout: Layout, body: bytes) -> str:
    """Check and decode, as the endpoint does."""
    if layout.decoded_nbytes > LIMIT:
        return "over the limit"
    try:
        codec.check(layout)
    except WireError:
        return "header refused"
    data = aligned_buffer(layout.nbytes)
    data[:] = memoryview(body)
    try:
        x = codec.decode(Packed(layout=layout, data=data), coding_of(codec, layout.shape, layout.dtype))
    except WireError:
        return "body refused"
    assert (tuple(x.shape), x.dtype) == (layout.shape, layout.dtype), (codec, layout)
    if "identity" not in repr(codec):
        assert bool(torch.isfinite(x).all()), (codec, layout)
    return "decoded"


def through_an_endpoint(codec: Scheme, layout: Layout, chunk: bytes) -> str:
    """As a batch or a gradient from a hostile peer."""
    down = codec.uses_like or codec.kind == "feedback"
    end = Endpoint("client" if down else "server", link=Link(down=codec) if down else Link(up=codec), limit_bytes=LIMIT)
    z = pb.Tensor(
        codec=layout.codec,
        dtype=DTYPES.index(layout.dtype) + 1,
        shape=layout.shape,
        nbytes=layout.nbytes,
        params=layout.params,
    )
    if down:
        frame = pb.ServerFrame(seq=1, gradient=pb.Gradient(step=0, dz=z), chunk=chunk)
    else:
        y = pb.Tensor(codec="identity", dtype=5, shape=[1], nbytes=8)
        frame = pb.ClientFrame(seq=1, smashed=pb.Smashed(y=y, z=z, train=True), chunk=bytes(8) + chunk)
    try:
        received = end.feed(frame.SerializeToString())
    except WireError:
        return "endpoint refused"
    return "endpoint waits for more" if received.message is None else "endpoint took it"


def _made(rng: random.Random) -> tuple[bytes, tuple[Scheme, Layout, bool]]:
    """The bytes of one tensor, the codec and the header that they come under, and whether an endpoint takes them."""
    drawn = np.random.default_rng(rng.getrandbits(64))
    codec = CODECS[drawn.integers(len(CODECS))]
    layout = layout_of(codec, drawn)
    return body_of(codec, layout, drawn), (codec, layout, bool(drawn.integers(4) == 0))


def _read(body: bytes, rest: tuple[Scheme, Layout, bool]) -> str:
    codec, layout, endpoint = rest
    return (through_an_endpoint if endpoint else directly)(codec, layout, body)


TARGETS: dict[str, Target] = {"codecs": Target(_made, _read)}
