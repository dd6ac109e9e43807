"""Kinds of numbers in a state dict: which of them are out of bounds, and the mean of each kind.

Law: a tensor is averaged by the kind of its numbers. Complex numbers are averaged by their parts; integers and bools
exactly, rounded half to even (of two bools of equal weight, False); a value that all have in common stays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_SIGN = -(1 << 63)  # flipping this bit maps uint64 to int64 in order
_EXACT_TOTAL = 1 << 31  # weights below this add up in int64
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def is_real(dtype: torch.dtype) -> bool:
    """Return True for floating-point numbers that torch computes with: not of 8 bits, and not complex."""
    return dtype.is_floating_point and dtype.itemsize > 1


def reals(tensor: Tensor) -> Tensor:
    """Return the floating-point numbers of a tensor, in a type that torch computes with.

    Complex numbers become pairs, those of 8 bits float32.
    """
    tensor = tensor.detach()
    if tensor.is_complex():
        return torch.view_as_real(tensor.resolve_conj())
    return tensor.float() if tensor.element_size() == 1 and tensor.is_floating_point() else tensor


def has_fractions(tensor: Tensor) -> bool:
    """Return True for floating-point or complex numbers, which may be NaN or Inf."""
    return tensor.is_floating_point() or tensor.is_complex()


def strays(tensor: Tensor, limit: float | None, given: Tensor | None) -> Tensor:
    """Return a mask of the `reals` of a tensor that are not finite or beyond the limit, and not the same in `given`."""
    numbers = reals(tensor)
    mask = ~torch.isfinite(numbers)
    if limit is not None:
        mask |= numbers.abs() > limit
    if given is not None and (given.shape, given.dtype) == (tensor.shape, tensor.dtype):
        mask &= ~same(numbers, reals(given).to(numbers.device))
    return mask


def same(a: Tensor, b: Tensor) -> Tensor:
    """Return a mask of equal elements of two tensors of one shape; NaN equals NaN."""
    return (a == b) | (torch.isnan(a) & torch.isnan(b))


def bits(tensor: Tensor) -> Tensor:
    """Return a tensor's memory as integers, element by element; of complex numbers part by part."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    tensor = tensor.resolve_neg()
    return tensor.view(_BITS[tensor.element_size()])


def alike(a: Tensor, b: Tensor) -> bool:
    """Return True if two tensors have the same type, shape and bits."""
    return (a.dtype, a.shape) == (b.dtype, b.shape) and torch.equal(bits(a.cpu()), bits(b.cpu()))


def mean_of(tensors: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    """Return Σ nᵢ·xᵢ / Σ nᵢ of tensors of one shape and dtype, on the CPU."""
    tensors = [tensor.detach().to("cpu") for tensor in tensors]
    first = tensors[0]
    if first.is_complex():
        pairs = [torch.view_as_real(tensor.resolve_conj()) for tensor in tensors]
        return torch.view_as_complex(_mean_of_floats(pairs, counts, keeps=True))
    keeps = first.dtype not in (torch.float32, torch.float16, torch.bfloat16)
    return (
        _mean_of_floats(tensors, counts, keeps=keeps)
        if first.is_floating_point()
        else _mean_of_integers(tensors, counts)
    )


def _mean_of_floats(tensors: Sequence[Tensor], counts: Sequence[int], *, keeps: bool) -> Tensor:
    """Return the mean, summed in float64 in the given order.

    Inf and NaN that all have are kept; with `keeps`, any value that all have. The sum gives equal numbers of 32 bits
    and less back unchanged, except for the sign of a zero.
    """
    first, total = tensors[0], sum(counts)
    summed = torch.zeros(first.shape, dtype=torch.float64)
    for tensor, count in zip(tensors, counts, strict=True):
        summed += tensor.to(torch.float64) * count
    summed /= total
    if keeps or not math.isfinite(summed.sum().item()):
        over = ~torch.isfinite(summed)
        if over.any():  # a sum of finite numbers may overflow although their mean does not
            shares = sum(
                tensor.to(torch.float64) * (count / total) for tensor, count in zip(tensors, counts, strict=True)
            )
            summed = torch.where(over, shares, summed)
        return _kept(summed.to(first.dtype), tensors)
    return summed.to(first.dtype)


def _kept(mean: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """Return the mean, with the bits of elements that are the same in all tensors."""
    own = [bits(tensor) for tensor in tensors]
    alike = torch.ones(mean.shape, dtype=torch.bool)
    for other in own[1:]:
        alike &= own[0] == other
    return torch.where(alike, own[0], bits(mean)).view(mean.dtype)


def _mean_of_integers(tensors: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    """Return the exact mean, rounded half to even."""
    shared = math.gcd(*counts)
    counts = [count // shared for count in counts]
    total, wide = sum(counts), [_signed(tensor) for tensor in tensors]
    divided = _divided if total < _EXACT_TOTAL else _divided_at_length
    whole, rest = divided(wide, counts, total)
    whole += ((2 * rest > total) | ((2 * rest == total) & (whole % 2 == 1))).to(torch.int64)
    dtype = tensors[0].dtype
    return (whole ^ _SIGN).view(dtype) if dtype == torch.uint64 else whole.to(dtype)


def _signed(tensor: Tensor) -> Tensor:
    """Return int64 numbers; unsigned ones of 64 bits less 2^63, on which no mean and no rounding depends."""
    return tensor.view(torch.int64) ^ _SIGN if tensor.dtype == torch.uint64 else tensor.to(torch.int64)


def _divided(tensors: Sequence[Tensor], counts: Sequence[int], total: int) -> tuple[Tensor, Tensor]:
    """Return quotient and rest (≥ 0) of Σ nᵢ·xᵢ by `total`; no intermediate number exceeds 63 bits."""
    whole, rest = (torch.zeros(tensors[0].shape, dtype=torch.int64) for _ in range(2))
    for tensor, count in zip(tensors, counts, strict=True):
        own = torch.div(tensor, total, rounding_mode="floor")
        whole += own * count
        rest += (tensor - own * total) * count
    carry = torch.div(rest, total, rounding_mode="floor")
    return whole + carry, rest - carry * total


def _divided_at_length(tensors: Sequence[Tensor], counts: Sequence[int], total: int) -> tuple[Tensor, Tensor]:
    """Return quotient and rest in integers of any length, one element at a time if they differ.

    Only weights beyond any real data set need it.
    """
    whole, rest = tensors[0].clone(), torch.zeros(tensors[0].shape, dtype=torch.int64)
    differ = torch.zeros(whole.shape, dtype=torch.bool)
    for tensor in tensors[1:]:
        differ |= tensor != tensors[0]
    columns = zip(*(tensor[differ].tolist() for tensor in tensors), strict=True)
    pairs = [divmod(sum(n * x for n, x in zip(counts, column, strict=True)), total) for column in columns]
    whole[differ], rest[differ] = torch.tensor(pairs, dtype=torch.int64).view(-1, 2).unbind(1)
    return whole, rest
