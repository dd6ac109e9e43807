"""The engine of torch's autograd without what torch.autograd.backward does before it.

That imports sympy at its first use, half a second and 30 MB for shapes that are symbols, and takes 0.1 ms for each call.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sl_common.errors import WireError

# torch's own, by a name that torch may take back: then the long way is taken
_ENGINE = getattr(torch.autograd.Variable, "_execution_engine", None)


def backward_from(output: Tensor, grad: Tensor) -> None:
    """Add to the gradients of all that `output` (…) was computed from, where d loss/d output is `grad` (…). Raises WireError if they differ in shape."""
    if grad.shape != output.shape:  # autograd would sum over a dimension too many
        raise WireError(f"gradient has shape {tuple(grad.shape)}, what it is of has {tuple(output.shape)}")
    if _ENGINE is None:
        torch.autograd.backward(output, grad)
    else:
        _ENGINE.run_backward((output,), (grad,), False, False, (), allow_unreachable=True, accumulate_grad=True)
