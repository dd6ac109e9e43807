"""The data that a codec makes and reads: a tensor as bytes, with everything needed to decode it."""

from __future__ import annotations

import math
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from sl_common.seeds import Draw

Buffer = bytes | memoryview

DTYPES: tuple[torch.dtype, ...] = (  # by wire number less one: protos/sl/v1/split.proto, DType
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.complex64,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
)
MAX_RANK = 16
_MAX_LAYOUTS = 4096  # cached layouts; every step uses the same few


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """The header of an encoded tensor: untrusted when it comes from the peer."""

    codec: str  # the `kind` of the codec that wrote it
    dtype: torch.dtype  # after decoding
    shape: tuple[int, ...]  # after decoding
    nbytes: int  # encoded
    params: bytes = b""  # the codec's own, at most 64 bytes

    @property
    def decoded_nbytes(self) -> int:
        """Bytes of the tensor after decoding."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Packed:
    """An encoded tensor. `data` starts at a multiple of 64 bytes when it was received."""

    layout: Layout
    data: Buffer


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Coding:
    """The context of one encode or decode: the activation of a gradient, the mode, and the name of any draw."""

    like: Tensor | None = None  # as it was sent; only for codecs with uses_like
    training: bool = True
    draw: Draw = ()  # hashed only if something is drawn
    name: str = ""  # of the tensor, the same in every message that carries it
    # Losses of earlier encodings by name. The sender keeps them, for feedback.
    residuals: MutableMapping[str, Tensor] | None = None


@runtime_checkable
class Scheme(Protocol):
    """The codec interface. A codec *is* its configuration and keeps no state."""

    uses_like: ClassVar[bool]

    @property
    def kind(self) -> str:
        """Name in configurations and tensor headers."""
        ...

    def sizes(self, dtype: torch.dtype, shape: tuple[int, ...]) -> tuple[int, int]:
        """Return the least and the most bytes of such a tensor; equal unless they depend on its values."""
        ...

    def encode(self, x: Tensor, coding: Coding) -> Packed:
        """Encode a CPU tensor. Raise Diverged on NaN or Inf, which only identity carries."""
        ...

    def check(self, layout: Layout) -> None:
        """Raise WireError unless this codec could have written this header. Takes no memory."""
        ...

    def decode(self, packed: Packed, coding: Coding) -> Tensor:
        """Decode a tensor that `check` accepted. Raise WireError if the bytes contradict the header."""
        ...


LinkRole = Literal["up", "down", "state"]


def make_layout(kind: str, x: Tensor, nbytes: int, params: bytes = b"") -> Layout:
    """Return the header for encoding `x` by the codec `kind` into `nbytes`."""
    return _layout(kind, x.dtype, x.shape, nbytes, params)


@lru_cache(maxsize=_MAX_LAYOUTS)
def _layout(kind: str, dtype: torch.dtype, shape: torch.Size, nbytes: int, params: bytes) -> Layout:
    return Layout(codec=kind, dtype=dtype, shape=tuple(shape), nbytes=nbytes, params=params)


def fits(shape: Sequence[int]) -> bool:
    """Return True if a shape from the wire can be handled.

    Even its strides, beside a side of 0, must not overflow.
    """
    return len(shape) <= MAX_RANK and math.prod(max(n, 1) for n in shape) < 2**40
