"""Small exact operations on tensors and state dicts that several modules share."""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from sl_common.errors import WireError
from sl_common.kinds import alike, has_fractions, is_real, mean_of, reals, strays

_USUAL = (torch.float32, torch.int64)
_CHECKED = 1 << 16  # elements that a checksum reads

StateDict = Mapping[str, Tensor]  # a part's parameters and buffers by name, in the module's order


def aligned_buffer(nbytes: int) -> memoryview:
    """Return `nbytes` of uninitialised memory that starts at a multiple of 64, as torch's CPU allocator gives it."""
    return memoryview(torch.empty(nbytes, dtype=torch.uint8).numpy().data)


def raw_bytes(tensor: Tensor) -> memoryview:
    """Return the little-endian row-major bytes of a CPU tensor, without a copy if it is contiguous."""
    if tensor.requires_grad:
        tensor = tensor.detach()
    if tensor.dtype in _USUAL and not tensor.is_neg():  # the same bytes in a third of the calls
        array = tensor.numpy()
        if array.size and array.flags.c_contiguous:
            return array.data.cast("B")
    if tensor.numel() == 0:
        return memoryview(b"")
    plain = tensor.resolve_conj().resolve_neg().contiguous()
    return memoryview(plain.view(-1).view(torch.uint8).numpy().data)


def all_finite(tensor: Tensor) -> bool:
    """Return False if any element is NaN or Inf.

    The sum decides in one pass; only a sum that overflows needs a second one.
    """
    if not has_fractions(tensor) or tensor.numel() == 0:
        return True
    if not is_real(tensor.dtype):
        tensor = reals(tensor)
    return math.isfinite(tensor.sum().item()) or bool(torch.isfinite(tensor).all())


def is_within(tensor: Tensor, limit: float | None, given: Tensor | None = None) -> bool:
    """Return True if all numbers are finite and none exceeds the limit (for complex numbers: their parts).

    Numbers that are the same in `given` are exempt. Usually takes one pass: no number exceeds the root of the sum of
    all squares.
    """
    if not has_fractions(tensor) or tensor.numel() == 0:
        return True
    if given is not None:
        return not bool(strays(tensor, limit, given).any())
    if limit is None:
        return all_finite(tensor)
    if tensor.dtype == torch.float32:
        flat = tensor.detach().reshape(-1)
        if torch.dot(flat, flat).item() <= limit * limit:  # NaN fails the comparison
            return True
    low, high = torch.aminmax(reals(tensor))  # NaN if there is one
    return -limit <= low.item() and high.item() <= limit


def constants_of(state: StateDict, limit: float | None = None) -> dict[str, Tensor]:
    """Return copies of the tensors that are not within the limit.

    A network that begins with them, such as a mask of -Inf, may keep them.
    """
    return {name: t.detach().to("cpu", copy=True) for name, t in state.items() if not is_within(t, limit)}


def state_digest(state: StateDict) -> bytes:
    """Return the SHA-256 over the names (sorted), dtypes, shapes and bytes of a state dict: 32 bytes."""
    sha = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu()
        sha.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        sha.update(raw_bytes(tensor))
    return sha.digest()


def checksum(tensor: Tensor) -> str:
    """Return the CRC-32, as 8 hexadecimal digits, of the bytes of at most 2^16 elements at even distances.

    It tells one batch from another, or from another run's version of it, and takes less than a pass over large ones.
    """
    flat = tensor.detach().reshape(-1)
    return f"{zlib.crc32(raw_bytes(flat[:: stride(flat.numel(), _CHECKED)])):08x}"


@lru_cache(maxsize=256)
def stride(count: int, at_most: int) -> int:
    """Return the least prime, or 1, that leaves at most `at_most` of `count` elements.

    A side of a tensor is not a multiple of a prime by accident.
    """
    found = max(1, -(-count // at_most))
    while any(found % divisor == 0 for divisor in range(2, math.isqrt(found) + 1)):
        found += 1
    return found


def copy_state(state: StateDict) -> dict[str, Tensor]:
    """Return the same state in memory of its own, on the CPU, row by row."""
    plain = torch.contiguous_format
    return {name: tensor.detach().to("cpu", copy=True, memory_format=plain) for name, tensor in state.items()}


def weighted_mean(states: Sequence[StateDict], counts: Sequence[int]) -> dict[str, Tensor]:
    """Return (Σ nᵢ·xᵢ in float64, in the given order) / Σ nᵢ, cast back.

    Integer tensors are exact and rounded half to even (`sl_common.kinds`). Sort before you call: floating-point sums
    depend on the order. Identical states give back their own bits. (Σ (1/C)·x over identical x is not x for C = 3, 5,
    6, …)
    """
    return {name: mean_of([state[name] for state in states], counts) for name in states[0]}


NO_CONSTANTS: StateDict = {}


def check_state(
    state: StateDict,
    expected: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    what: str,
    constants: StateDict = NO_CONSTANTS,
) -> None:
    """Raise WireError unless `state` has exactly the expected names, dtypes and shapes, and is finite.

    The network's own constants need not be finite.
    """
    if state.keys() != expected.keys():
        missing, extra = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
        raise WireError(f"weights of {what} do not fit this model: missing {missing[:3]}, unknown {extra[:3]}")
    for name, (dtype, shape) in expected.items():
        tensor = state[name]
        if tensor.dtype != dtype or tuple(tensor.shape) != shape:
            raise WireError(
                f"weights of {what}: {name} is {tensor.dtype} {tuple(tensor.shape)}, this model has {dtype} {shape}"
            )
        if not is_within(tensor, None, constants.get(name)):
            raise WireError(f"weights of {what}: {name} holds NaN or Inf")


def check_copies(state: StateDict, own: StateDict, names: Iterable[str], what: str) -> None:
    """Raise WireError unless these frozen tensors have our own bits.

    The other side of the cut has copies of them.
    """
    for name in names:
        if name in own and not alike(state[name], own[name]):
            raise WireError(f"weights of {what}: {name} is frozen on both sides of the cut, and is not what it was")
