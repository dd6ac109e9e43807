"""A gradient that is given from outside enters autograd through its public door for functions of one's own.

torch.autograd.backward has an argument for it, which imports sympy at its first use: half a second and 30 MB, for shapes that are symbols.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sl_common.errors import WireError


class _Given(torch.autograd.Function):
    """A scalar that nobody looks at; its gradient by `output` is the one that was given."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, grad: Tensor) -> Tensor:
        ctx.given = grad
        return output.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, None]:
        return ctx.given, None


def backward_from(output: Tensor, grad: Tensor) -> None:
    """Add to the gradients of all that `output` (…) was computed from, where d loss/d output is `grad` (…). Raises WireError if they differ in shape."""
    if grad.shape != output.shape:  # autograd would sum over a dimension too many
        raise WireError(f"gradient has shape {tuple(grad.shape)}, what it is of has {tuple(output.shape)}")
    _Given.apply(output, grad).backward()  # type: ignore[no-untyped-call]
