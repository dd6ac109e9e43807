"""Steps that the lossy codecs share: one finite flat array in, one gather from a table out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sl_common.codec.bits import ByteArray, unpack
from sl_common.codec.packed import Buffer, Layout
from sl_common.errors import Diverged, WireError
from sl_common.kinds import is_real
from sl_common.tensors import raw_bytes

Floats = NDArray[np.floating[Any]]
Words = NDArray[np.unsignedinteger[Any]]
PAIRS_FROM = 1 << 20  # codes; from here on a table over two bytes pays
_BLOCK = 1 << 15
_WORDS: dict[int, np.dtype[Any]] = {2: np.dtype("<u2"), 4: np.dtype("<u4"), 8: np.dtype("<u8")}


def flat(x: Tensor) -> Floats:
    """Return all elements in row-major order, float64 unchanged and smaller types as float32; a view where possible."""
    x = x.detach()
    return (x if x.dtype in (torch.float32, torch.float64) else x.float()).reshape(-1).numpy()


def extremes(x: Tensor, kind: str) -> tuple[float, float]:
    """Return (least, greatest) in one pass; (0, 0) of an empty tensor.

    Raise Diverged if any element is NaN or Inf.
    """
    if x.numel() == 0:
        return 0.0, 0.0
    low, high = (extreme.item() for extreme in x.detach().aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise Diverged(f"codec {kind}: a tensor {tuple(x.shape)} to be encoded holds NaN or Inf")
    return low, high


def largest_of(dtype: torch.dtype) -> float:
    """Return the greatest finite number of a floating-point type."""
    return torch.finfo(dtype).max


def table_of(values: NDArray[np.float64], dtype: torch.dtype) -> Tensor:
    """Return values in a type, rounded to nearest even; numbers that are too large for it saturate."""
    top = largest_of(dtype)
    return torch.from_numpy(np.clip(values, -top, top)).to(dtype)


def look_up(table: Tensor, data: Buffer, bits: int, layout: Layout) -> Tensor:
    """Return the tensor whose element i is table[code i]; the codes lie packed in `data`."""
    count = math.prod(layout.shape)
    if count == 0:
        return torch.empty(layout.shape, dtype=layout.dtype)
    entries = np.frombuffer(raw_bytes(table), _WORDS[table.element_size()])
    out = np.empty(count, entries.dtype)
    packed = np.frombuffer(data, np.uint8)
    if bits == 8 and count >= PAIRS_FROM and table.element_size() <= 4:
        _gather_pairs(entries, packed, out)
    else:
        _gather(entries, unpack(packed, bits, count), out)
    return torch.frombuffer(out, dtype=layout.dtype).view(layout.shape)


def _gather(entries: Words, codes: ByteArray, out: Words) -> None:
    full = np.zeros(256, entries.dtype)
    full[: len(entries)] = entries
    for start in range(0, len(codes), _BLOCK):
        np.take(full, codes[start : start + _BLOCK], out=out[start : start + _BLOCK], mode="clip")


def _gather_pairs(entries: Words, codes: ByteArray, out: Words) -> None:
    """Gather two codes at a time: half as many look-ups, in a table that fits the second-level cache."""
    wide = _WORDS[2 * entries.itemsize]
    pairs = np.empty((256, 256, 2), entries.dtype)  # [second code, first code]
    pairs[..., 0], pairs[..., 1] = entries[None, :], entries[:, None]
    table = pairs.view(wide).reshape(-1)
    even = len(codes) & ~1
    both, target = codes[:even].view("<u2"), out[:even].view(wide)
    for start in range(0, len(both), _BLOCK):
        np.take(table, both[start : start + _BLOCK], out=target[start : start + _BLOCK], mode="clip")
    out[even:] = entries[codes[even:]]


def checked(kind: str, layout: Layout, nbytes: int, params: int) -> None:
    """Raise WireError unless the header has these numbers of encoded bytes and of bytes of parameters."""
    if not is_real(layout.dtype):
        raise WireError(f"codec {kind} is for floating point, the header says {layout.dtype}")
    if layout.nbytes != nbytes or len(layout.params) != params:
        raise WireError(
            f"codec {kind}: {layout.dtype} {layout.shape} takes {nbytes} bytes and {params} of parameters, "
            f"header says {layout.nbytes} and {len(layout.params)}"
        )


def flat32(x: Tensor) -> NDArray[np.float32]:
    """Return all elements as `flat` does, but float64 as the nearest finite float32."""
    values = flat(x)
    if values.dtype == np.float32:
        return values
    top = np.finfo(np.float32).max
    return np.clip(values, -top, top).astype(np.float32)


def from_float32(values: NDArray[np.float32], layout: Layout) -> Tensor:
    """Return finite numbers in the tensor's type; numbers that are too large for it saturate."""
    return narrowed(torch.from_numpy(values).view(layout.shape), layout.dtype)


def narrowed(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return float32 numbers in another type; numbers that are too large for it saturate."""
    if dtype in (torch.float32, torch.float64):
        return x.to(dtype)
    top = largest_of(dtype)
    return x.clamp(-top, top).to(dtype)
