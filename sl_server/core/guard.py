"""The guard against poisoned numbers: activations and weights with NaN, Inf or numbers above a limit. Pure.

A client that is refused leaves the run; the batches and averages of the others are not touched.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from sl_common.config.server_section import Guard
from sl_common.errors import WireError
from sl_common.kinds import reals, strays
from sl_common.messages.training import Smashed
from sl_common.tensors import NO_CONSTANTS, StateDict, is_within


def guarded_batch(batch: Smashed, guard: Guard) -> Smashed:
    """Return the batch, or a copy with clipped activations. Raises WireError where they are refused."""
    z = _guarded(batch.z, guard.activations, guard, f"activations of batch {batch.step}")
    return batch if z is batch.z else replace(batch, z=z, packed=None)


def guarded_state(state: StateDict, guard: Guard, what: str, constants: StateDict = NO_CONSTANTS) -> StateDict:
    """Return the weights, or clipped ones. Raises WireError where they are refused.

    `constants`: values that the network began with; these are let through.
    """
    return {
        name: _guarded(tensor, guard.weights, guard, f"weights of {what}: {name}", constants.get(name))
        for name, tensor in state.items()
    }


def _guarded(tensor: Tensor, limit: float | None, guard: Guard, what: str, given: Tensor | None = None) -> Tensor:
    if is_within(tensor, limit, given):
        return tensor
    numbers, wrong = reals(tensor), strays(tensor, limit, given)
    if guard.action == "reject":
        largest = float(numbers[wrong].abs().max())
        if limit is None or not math.isfinite(largest):
            raise WireError(f"{what} hold NaN or Inf")
        raise WireError(f"{what} hold {largest:.4g}, at most {limit:g} is allowed")
    top = torch.finfo(tensor.dtype).max  # of a complex dtype: the limit of its real and imaginary parts
    bound = top if limit is None else min(limit, top)
    clipped = torch.nan_to_num(numbers, nan=0.0, posinf=bound, neginf=-bound).clamp_(-bound, bound)
    kept = torch.where(wrong, clipped, numbers)
    return torch.view_as_complex(kept) if tensor.is_complex() else kept.to(tensor.dtype)
