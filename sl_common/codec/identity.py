"""The tensor as it is: raw little-endian row-major bytes, numel × itemsize of them, no parameters."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from sl_common.codec.packed import Coding, Layout, Packed, make_layout
from sl_common.errors import WireError
from sl_common.tensors import raw_bytes
from sl_common.value import Value


class Identity(Value):
    """No compression; any dtype, any shape, exact."""

    kind: Literal["identity"] = Field("identity", description="No compression: the tensor's own bytes.")
    uses_like: ClassVar[bool] = False

    def sizes(self, dtype: torch.dtype, shape: tuple[int, ...]) -> tuple[int, int]:
        """Return numel × itemsize."""
        nbytes = math.prod(shape) * dtype.itemsize
        return nbytes, nbytes

    def encode(self, x: Tensor, coding: Coding) -> Packed:  # noqa: ARG002  (the interface)
        """Return a view of the tensor's own memory; send it before the tensor changes."""
        data = raw_bytes(x)
        return Packed(layout=make_layout(self.kind, x, data.nbytes), data=data)

    def check(self, layout: Layout) -> None:
        """Check that the byte count is the tensor's and that there are no parameters."""
        if layout.params:
            raise WireError(f"codec identity has no parameters, the header has {len(layout.params)} bytes of them")
        if layout.nbytes != layout.decoded_nbytes:
            raise WireError(
                f"codec identity: {layout.dtype} {layout.shape} takes {layout.decoded_nbytes} bytes, header says "
                f"{layout.nbytes}"
            )

    def decode(self, packed: Packed, coding: Coding) -> Tensor:  # noqa: ARG002  (the interface)
        """Return a view of the received bytes."""
        layout = packed.layout
        if layout.nbytes == 0:
            return torch.empty(layout.shape, dtype=layout.dtype)
        return torch.frombuffer(packed.data, dtype=layout.dtype).view(layout.shape)
