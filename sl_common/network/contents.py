"""Tensors that a run can carry.

Law: a network with any other tensor is refused, by the tensor's name, before any client connects.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from sl_common.codec.packed import DTYPES
from sl_common.errors import ConfigError

_SHAPELESS = (UninitializedBuffer, UninitializedParameter)


def check_contents(module: nn.Module, model: str) -> None:
    """Raise ConfigError with the names of tensors that a run cannot carry, if there are any."""
    found = [f"{name} {why}" for name, tensor in _carried(module) if (why := _reason_against(tensor))]
    if found:
        more = f", and {len(found) - 4} more" if len(found) > 4 else ""
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise ConfigError(
            f"model {model!r}: {'; '.join(found[:4])}{more}; a run carries dense tensors of {known}. Other buffers "
            "may stay on either side if they are registered with persistent=False"
        )


def materialise_views(module: nn.Module) -> None:
    """Copy views that cannot be written to (conjugates, negatives, expanded tensors) into memory of their own."""
    own: dict[int, Tensor] = {}
    for owner in module.modules():
        for name, buffer in owner._buffers.items():
            if buffer is not None and _is_lazy(buffer):
                if id(buffer) not in own:
                    own[id(buffer)] = _plain(buffer)
                owner._buffers[name] = own[id(buffer)]
    for parameter in module.parameters():
        if _is_lazy(parameter) and not (parameter.requires_grad and _overlaps_itself(parameter)):
            parameter.data = _plain(parameter.data)


def _carried(module: nn.Module) -> Iterator[tuple[str, object]]:
    """Yield a module's parameters and persistent buffers with all of their names, and other entries of its state."""
    for prefix, owner in module.named_modules(remove_duplicate=False):
        begin = f"{prefix}." if prefix else ""
        for name, tensor in owner._parameters.items():
            if tensor is not None:
                yield begin + name, tensor
        for name, buffer in owner._buffers.items():
            if buffer is not None and name not in owner._non_persistent_buffers_set:
                yield begin + name, buffer
        if type(owner).get_extra_state is not nn.Module.get_extra_state:
            yield begin + "_extra_state", None


def _reason_against(tensor: object) -> str | None:
    if not isinstance(tensor, Tensor):
        return "is state that is no tensor (get_extra_state)"
    if isinstance(tensor, _SHAPELESS):
        return "has no shape yet, after a forward pass"
    if tensor.is_meta:
        return "is on the meta device, without memory"
    if is_traceable_wrapper_subclass(tensor):
        return f"is a {type(tensor).__name__}, which wraps other tensors"
    if tensor.is_quantized or tensor.dtype not in DTYPES:
        return f"is {tensor.dtype}"
    if tensor.layout != torch.strided or tensor.is_nested:
        return f"is {'nested' if tensor.is_nested else tensor.layout}"
    if not _is_storable(tensor.dtype):
        return f"is {tensor.dtype}, which the safetensors package of this machine cannot write"
    if _overlaps_itself(tensor) and tensor.requires_grad:
        return "is trained and expanded: several of its elements are one number"
    return None


@lru_cache
def _is_storable(dtype: torch.dtype) -> bool:
    """Try whether this machine's safetensors and torch can store this type in files."""
    try:
        back: Tensor = load(save({"x": torch.zeros(2).to(dtype)}))["x"]
        return back.dtype == dtype
    except Exception:  # an error of either package
        return False


def _is_lazy(tensor: Tensor) -> bool:
    if tensor.layout != torch.strided or tensor.is_meta or isinstance(tensor, _SHAPELESS):
        return False
    return tensor.is_conj() or tensor.is_neg() or _overlaps_itself(tensor)


def _overlaps_itself(tensor: Tensor) -> bool:
    """Return True if several elements share one place in memory, as far as strides tell at once."""
    if tensor.layout != torch.strided or tensor.numel() < 2:
        return False
    sides = [(n, s) for n, s in zip(tensor.shape, tensor.stride(), strict=True) if n > 1]
    return any(s == 0 for _, s in sides) or 1 + sum((n - 1) * s for n, s in sides) < tensor.numel()


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
