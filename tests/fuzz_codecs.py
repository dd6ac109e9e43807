"""Random headers and bytes into every decoder: WireError or a finite tensor of the header's shape, never a crash or much memory.

python tests/fuzz_codecs.py [--inputs 1000000] [--seed 0]; `make fuzz` includes it. A part of the inputs goes through a real endpoint.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))

from test_codec import CODECS

from sl_common.codec import Coding, Layout, Link, Packed, Scheme
from sl_common.codec.packed import DTYPES
from sl_common.errors import WireError
from sl_common.proto import split_pb2 as pb
from sl_common.tensors import aligned_buffer
from sl_common.wire import Endpoint

LIMIT = 1 << 12  # bytes of a decoded tensor that the imagined run allows
FLOATS = [dtype for dtype in DTYPES if dtype.is_floating_point]
SHAPES: list[tuple[int, ...]] = [(), (0,), (1,), (7,), (4, 9), (3, 0, 2), (2, 3, 4, 5), (5, 64)]


def layout_of(codec: Scheme, rng: np.random.Generator) -> Layout:
    """A header that the codec wrote, as it is or with one thing changed."""
    shape = SHAPES[rng.integers(len(SHAPES))]
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
            return replace(layout, shape=SHAPES[rng.integers(len(SHAPES))])
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
    if rng.integers(2) or not layout.dtype.is_floating_point:
        return rng.bytes(layout.nbytes)
    x = torch.from_numpy(rng.standard_normal(layout.shape)).to(layout.dtype)
    body = bytearray(codec.encode(x, coding_of(codec, layout.shape, layout.dtype)).data)[: layout.nbytes]
    body += bytes(layout.nbytes - len(body))
    for _ in range(int(rng.integers(3))):
        if body:
            body[rng.integers(len(body))] ^= 1 << rng.integers(8)
    return bytes(body)


def directly(codec: Scheme, rng: np.random.Generator) -> str:
    """Check and decode, as the endpoint does."""
    layout = layout_of(codec, rng)
    if layout.decoded_nbytes > LIMIT:
        return "over the limit"
    try:
        codec.check(layout)
    except WireError:
        return "header refused"
    data = aligned_buffer(layout.nbytes)
    data[:] = memoryview(body_of(codec, layout, rng))
    try:
        x = codec.decode(Packed(layout=layout, data=data), coding_of(codec, layout.shape, layout.dtype))
    except WireError:
        return "body refused"
    assert (tuple(x.shape), x.dtype) == (layout.shape, layout.dtype), (codec, layout)
    if "identity" not in repr(codec):
        assert bool(torch.isfinite(x).all()), (codec, layout)
    return "decoded"


def through_an_endpoint(codec: Scheme, rng: np.random.Generator) -> str:
    """As a batch or a gradient from a hostile peer."""
    down = codec.uses_like or codec.kind == "feedback"
    end = Endpoint("client" if down else "server", link=Link(down=codec) if down else Link(up=codec), limit_bytes=LIMIT)
    layout = layout_of(codec, rng)
    z = pb.Tensor(
        codec=layout.codec,
        dtype=DTYPES.index(layout.dtype) + 1,
        shape=layout.shape,
        nbytes=layout.nbytes,
        params=layout.params,
    )
    chunk = body_of(codec, layout, rng)
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


def fuzz(inputs: int, seed: int) -> Counter[str]:
    """How the inputs ended; raises what must not happen."""
    rng = np.random.default_rng(seed)
    ended: Counter[str] = Counter()
    for number in range(inputs):
        codec = CODECS[number % len(CODECS)]
        once = through_an_endpoint if number // len(CODECS) % 4 == 0 else directly
        ended[once(codec, rng)] += 1
    return ended


def main() -> None:
    """Under a limit of memory."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    fuzz(1000, args.seed + 1)  # whatever is loaded on first use
    virtual = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (virtual + (64 << 20), resource.RLIM_INFINITY))
    started = time.monotonic()
    torch.set_num_threads(1)
    ended = fuzz(args.inputs, args.seed)
    print(
        f"{args.inputs:,} inputs in {time.monotonic() - started:.0f} s within 64 MiB of memory, seed {args.seed}: {dict(ended)}"
    )


if __name__ == "__main__":
    main()
