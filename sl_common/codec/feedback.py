"""Error feedback: the loss of each encoding is added to the next tensor of the same name before it is encoded.

Seide et al. 2014 (1-bit SGD); Karimireddy et al., "Error Feedback Fixes SignSGD", ICML 2019. The residual lives with
the sender, in its endpoint; the bytes are those of the codec `of`. For weights, and for cut gradients while their
shape stays the same (a smaller last batch starts anew); not for activations, since their samples differ each time.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from sl_common.codec.float8 import Float8
from sl_common.codec.kinds import Lossy
from sl_common.codec.packed import Coding, Layout, Packed
from sl_common.value import Value


class Feedback(Value):
    """Any lossy codec `of`, with error feedback."""

    kind: Literal["feedback"] = Field(
        "feedback",
        description="A lossy codec with error feedback: each loss is added to the next tensor of the same name.",
    )
    of: Lossy = Field(Float8(), description="The lossy codec.")
    uses_like: ClassVar[bool] = False

    def sizes(self, dtype: torch.dtype, shape: tuple[int, ...]) -> tuple[int, int]:
        """Return the sizes of the codec."""
        return self.of.sizes(dtype, shape)

    def encode(self, x: Tensor, coding: Coding) -> Packed:
        """Encode x plus the loss of the last encoding, and keep the loss of this one."""
        x = x.detach()
        lost = None if coding.residuals is None else coding.residuals.get(coding.name)
        top = torch.finfo(x.dtype).max
        whole = x if lost is None or lost.shape != x.shape else (x + lost).clamp(-top, top)
        packed = self.of.encode(whole, coding)
        if coding.residuals is not None:
            coding.residuals[coding.name] = whole - self.of.decode(packed, coding)
        return Packed(layout=replace(packed.layout, codec=self.kind), data=packed.data)

    def check(self, layout: Layout) -> None:
        """Do as the codec does."""
        self.of.check(replace(layout, codec=self.of.kind))

    def decode(self, packed: Packed, coding: Coding) -> Tensor:
        """Do as the codec does."""
        return self.of.decode(Packed(layout=replace(packed.layout, codec=self.of.kind), data=packed.data), coding)
