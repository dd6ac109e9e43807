"""16-bit floating point, two bytes an element, no parameters: IEEE binary16 and bfloat16, nearest-even, saturating.

Micikevicius et al., "Mixed Precision Training", ICLR 2018, for the use of both. float64 is taken as float32 first.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from sl_common.codec.numbers import checked, extremes, largest_of, narrowed
from sl_common.codec.packed import Coding, Layout, Packed, make_layout
from sl_common.errors import WireError
from sl_common.tensors import all_finite, raw_bytes
from sl_common.value import Value


class Float16(Value):
    """IEEE binary16: 11 significant bits, at most 65504, steps of 6e-8 near 0."""

    kind: Literal["float16"] = Field("float16", description="IEEE binary16, two bytes an element.")
    uses_like: ClassVar[bool] = False

    def sizes(self, dtype: torch.dtype, shape: tuple[int, ...]) -> tuple[int, int]:  # noqa: ARG002  (the interface)
        """Return two bytes an element."""
        return 2 * math.prod(shape), 2 * math.prod(shape)

    def encode(self, x: Tensor, coding: Coding) -> Packed:  # noqa: ARG002  (the interface)
        """Encode rounded elements. Raise Diverged on NaN or Inf."""
        return _encode(self.kind, torch.float16, x)

    def check(self, layout: Layout) -> None:
        """Check that there are two bytes an element."""
        checked(self.kind, layout, 2 * math.prod(layout.shape), 0)

    def decode(self, packed: Packed, coding: Coding) -> Tensor:  # noqa: ARG002  (the interface)
        """Return the decoded tensor. Raise WireError on NaN or Inf, which no encoder writes."""
        return _decode(self.kind, torch.float16, packed)


class BFloat16(Value):
    """bfloat16: float32's range with 8 significant bits."""

    kind: Literal["bfloat16"] = Field("bfloat16", description="bfloat16, two bytes an element.")
    uses_like: ClassVar[bool] = False

    def sizes(self, dtype: torch.dtype, shape: tuple[int, ...]) -> tuple[int, int]:  # noqa: ARG002  (the interface)
        """Return two bytes an element."""
        return 2 * math.prod(shape), 2 * math.prod(shape)

    def encode(self, x: Tensor, coding: Coding) -> Packed:  # noqa: ARG002  (the interface)
        """Encode rounded elements. Raise Diverged on NaN or Inf."""
        return _encode(self.kind, torch.bfloat16, x)

    def check(self, layout: Layout) -> None:
        """Check that there are two bytes an element."""
        checked(self.kind, layout, 2 * math.prod(layout.shape), 0)

    def decode(self, packed: Packed, coding: Coding) -> Tensor:  # noqa: ARG002  (the interface)
        """Return the decoded tensor. Raise WireError on NaN or Inf, which no encoder writes."""
        return _decode(self.kind, torch.bfloat16, packed)


def _encode(kind: str, half: torch.dtype, x: Tensor) -> Packed:
    low, high = extremes(x, kind)
    top = largest_of(half)
    wide = x.detach() if x.dtype == torch.float64 else x.detach().float()
    data = raw_bytes((wide.clamp(-top, top) if max(-low, high) > top else wide).float().to(half))
    return Packed(layout=make_layout(kind, x, data.nbytes), data=data)


def _decode(kind: str, half: torch.dtype, packed: Packed) -> Tensor:
    layout = packed.layout
    if layout.nbytes == 0:
        return torch.empty(layout.shape, dtype=layout.dtype)
    x = torch.frombuffer(packed.data, dtype=half).view(layout.shape)
    wide = x.float()
    if not all_finite(wide):
        raise WireError(f"codec {kind}: NaN or Inf among the values")
    return narrowed(wide, layout.dtype)
