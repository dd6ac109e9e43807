"""A lossless stage after any other codec: DEFLATE (RFC 1951, zlib), where that makes the message smaller.

Parameters: 1 if deflated (uint8), the codec's own byte count (uint64), the codec's own parameters. The encoded size
depends on the data and, within the format, on the zlib that packs.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from sl_common.codec.identity import Identity
from sl_common.codec.kinds import Plain
from sl_common.codec.packed import Coding, Layout, Packed
from sl_common.errors import WireError
from sl_common.tensors import aligned_buffer
from sl_common.value import Value

_PARAMS = struct.Struct("<BQ")


class Deflate(Value):
    """Another codec's bytes, compressed; `level` from 1 (fast) to 9 (small)."""

    kind: Literal["deflate"] = Field(
        "deflate", description="Another codec's bytes, compressed without loss by DEFLATE where that makes them fewer."
    )
    of: Plain = Field(Identity(), description="Codec that encodes before the compression.")
    level: int = Field(1, ge=1, le=9, description="Compression level, from 1 (fast) to 9 (small).")
    uses_like: ClassVar[bool] = False

    def sizes(self, dtype: torch.dtype, shape: tuple[int, ...]) -> tuple[int, int]:
        """Return one byte, and the most bytes that the codec makes."""
        most = self.of.sizes(dtype, shape)[1]
        return min(most, 1), most

    def encode(self, x: Tensor, coding: Coding) -> Packed:
        """Encode by the codec, and keep the compressed bytes if they are fewer."""
        inner = self.of.encode(x, coding)
        packer = zlib.compressobj(self.level, zlib.DEFLATED, -zlib.MAX_WBITS)
        small = packer.compress(inner.data) + packer.flush()
        smaller = len(small) < inner.layout.nbytes
        layout = replace(
            inner.layout,
            codec=self.kind,
            nbytes=min(len(small), inner.layout.nbytes),
            params=_PARAMS.pack(smaller, inner.layout.nbytes) + inner.layout.params,
        )
        return Packed(layout=layout, data=small if smaller else inner.data)

    def check(self, layout: Layout) -> None:
        """Check the codec's own part, and that there are no more bytes than it makes."""
        deflated, inner = self._inner(layout)
        self.of.check(inner)
        if deflated not in (0, 1) or (layout.nbytes >= inner.nbytes if deflated else layout.nbytes != inner.nbytes):
            raise WireError(
                f"codec deflate: header has {layout.nbytes} bytes for {inner.nbytes} of codec {self.of.kind}, flag "
                f"{deflated}"
            )

    def _inner(self, layout: Layout) -> tuple[int, Layout]:
        if len(layout.params) < _PARAMS.size:
            raise WireError(f"codec deflate: header has {len(layout.params)} bytes of parameters")
        deflated, nbytes = _PARAMS.unpack(layout.params[: _PARAMS.size])
        params = layout.params[_PARAMS.size :]
        return deflated, replace(layout, codec=self.of.kind, nbytes=nbytes, params=params)

    def decode(self, packed: Packed, coding: Coding) -> Tensor:
        """Return the decoded tensor, in no more memory than the codec's own bytes.

        Raise WireError on a broken stream, or one of another length.
        """
        deflated, inner = self._inner(packed.layout)
        data = _inflated(packed, inner.nbytes) if deflated else packed.data
        return self.of.decode(Packed(layout=inner, data=data), coding)


def _inflated(packed: Packed, nbytes: int) -> memoryview:
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = unpacker.decompress(packed.data, nbytes + 1)
    except zlib.error as error:
        raise WireError(f"codec deflate: {error}") from error
    if len(data) != nbytes or not unpacker.eof or unpacker.unused_data:
        raise WireError(f"codec deflate: the stream has {len(data)} bytes or does not end, header says {nbytes}")
    aligned = aligned_buffer(nbytes)
    aligned[:] = data
    return aligned
