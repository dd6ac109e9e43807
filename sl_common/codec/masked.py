"""A gradient at the places where its activation arrived as non-zero, zero elsewhere.

Only values are sent, since both sides know the places. The cut gradient of Top-k travels so in RandTop-k's code
(Zheng et al., IJCAI 2023); for a dense straight-through gradient choose another codec for `down`. `of` encodes the
(n,) values, n of them non-zero in the activation. Bytes and parameters: those of `of` for n values.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from sl_common.codec.identity import Identity
from sl_common.codec.kinds import Plain
from sl_common.codec.packed import Coding, Layout, Packed, make_layout
from sl_common.errors import WireError
from sl_common.kinds import is_real
from sl_common.value import Value


class Masked(Value):
    """A sparse cut gradient; only for `down`, since it needs the activation."""

    kind: Literal["masked"] = Field(
        "masked", description="For cut gradients: only the values where the activation arrived as non-zero."
    )
    of: Plain = Field(Identity(), description="Codec of the values that are sent.")
    uses_like: ClassVar[bool] = True

    def sizes(self, dtype: torch.dtype, shape: tuple[int, ...]) -> tuple[int, int]:
        """Return the sizes of no values and of all."""
        return 0, self.of.sizes(dtype, (math.prod(shape),))[1]

    def encode(self, x: Tensor, coding: Coding) -> Packed:
        """Encode the values at the places where `coding.like` is not zero."""
        packed = self.of.encode(x.detach().reshape(-1)[_places(x.shape, coding)], coding)
        layout = make_layout(self.kind, x, packed.layout.nbytes, packed.layout.params)
        return Packed(layout=layout, data=packed.data)

    def check(self, layout: Layout) -> None:
        """Check that there are at most the bytes of a dense gradient; `decode` knows the exact number."""
        most = self.sizes(layout.dtype, layout.shape)[1]
        if not is_real(layout.dtype) or layout.nbytes > most:
            raise WireError(
                f"codec masked: {layout.dtype} {layout.shape} takes at most {most} bytes, header says {layout.nbytes}"
            )

    def decode(self, packed: Packed, coding: Coding) -> Tensor:
        """Return the decoded tensor.

        Raise WireError if there are not as many values as the activation has places.
        """
        layout = packed.layout
        places = _places(layout.shape, coding)
        inner = Layout(
            codec=self.of.kind,
            dtype=layout.dtype,
            shape=(len(places),),
            nbytes=layout.nbytes,
            params=layout.params,
        )
        self.of.check(inner)
        x = torch.zeros(math.prod(layout.shape), dtype=layout.dtype)
        x[places] = self.of.decode(Packed(layout=inner, data=packed.data), coding)
        return x.view(layout.shape)


def _places(shape: tuple[int, ...], coding: Coding) -> Tensor:
    """Return the (n,) positions in the flattened activation."""
    if coding.like is None or coding.like.shape != shape:
        there = None if coding.like is None else tuple(coding.like.shape)
        raise WireError(f"codec masked: a gradient {tuple(shape)} for an activation {there}")
    return torch.from_numpy(np.flatnonzero((coding.like != 0).numpy()))
