"""Converts one message to a protobuf header and encoded tensors, and back, by the table in `formats`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from torch import Tensor

from sl_common.codec import Coding, Layout, Link, LinkRole, Packed, Scheme
from sl_common.codec.packed import DTYPES, fits
from sl_common.errors import WireError
from sl_common.messages.training import Message
from sl_common.proto import split_pb2 as pb
from sl_common.wire.bounds import MAX_WORD
from sl_common.wire.formats import BY_TYPE, MessageFormat

_DTYPE_NUMBER = {dtype: number for number, dtype in enumerate(DTYPES, start=1)}
_LAYOUTS = 4096  # cached tensor headers: all steps use the same few


def encode(message: Message, frame: Any, link: Link, coding: Coding) -> list[Packed]:
    """Write a message's header into an empty frame; return the tensors in body order. Raises Diverged on NaN or Inf."""
    form = BY_TYPE[type(message)]
    tensors = form.tensors_of(message)
    if form.has_weights:
        codings = [replace(coding, name=own, draw=(*coding.draw, own)) for own in form.names_of(message)]
        packed = [_encode(tensor, link, form.role, own) for tensor, own in zip(tensors, codings, strict=True)]
    else:
        packed = [_encode(tensor, link, form.role, coding) for tensor in tensors]
    form.write(message, [_written(one.layout) for one in packed], getattr(frame, form.name))
    return packed


def _encode(tensor: Tensor, link: Link, role: LinkRole, coding: Coding) -> Packed:
    return link.chosen(role, tensor).encode(tensor.resolve_neg(), coding)


@lru_cache(maxsize=_LAYOUTS)
def _written(layout: Layout) -> pb.Tensor:
    return pb.Tensor(
        codec=layout.codec,
        dtype=_DTYPE_NUMBER[layout.dtype],  # type: ignore[arg-type]
        shape=layout.shape,
        nbytes=layout.nbytes,
        params=layout.params,
    )


def read_layout(data: bytes) -> Layout:
    """Parse a tensor header. Raises WireError on an unknown dtype or an absurd shape."""
    slot = pb.Tensor.FromString(data)
    if not 1 <= slot.dtype <= len(DTYPES):
        raise WireError(f"tensor header has dtype number {slot.dtype}, known are 1 to {len(DTYPES)}")
    shape = tuple(slot.shape)
    if not fits(shape) or len(slot.params) > MAX_WORD:
        raise WireError(f"tensor header has shape {shape[:20]} and {len(slot.params)} bytes of parameters")
    if len(slot.codec) > MAX_WORD:  # layouts are cached, so their size is bounded
        raise WireError(f"tensor header names a codec with {len(slot.codec)} characters")
    return Layout(codec=slot.codec, dtype=DTYPES[slot.dtype - 1], shape=shape, nbytes=slot.nbytes, params=slot.params)


def decode(
    form: MessageFormat, header: Any, packed: Sequence[Packed], schemes: Sequence[Scheme], coding: Coding
) -> Message:
    """Return the message of a header and its whole body, decoded by the schemes agreed on for its tensors.

    Raises WireError if header and body contradict each other.
    """
    tensors = [scheme.decode(one, coding) for scheme, one in zip(schemes, packed, strict=True)]
    return form.read(header, tensors, packed)
