"""What a network's modules hold: the tensors that a run can carry, and those that are one.

Law: what a run cannot carry is refused by its name before anybody connects. A tensor is on one side of the cut, unless nothing changes
it: then each side has a copy.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from sl_common.codec.packed import DTYPES
from sl_common.errors import ConfigError

_SHAPELESS = (UninitializedBuffer, UninitializedParameter)
_LOOKED_AT = 1 << 22  # elements of two tensors in one memory that are compared by their places


@dataclass(frozen=True, slots=True)
class Tie:
    """Names of one tensor, or of several that share memory, of one part or of several."""

    names: tuple[str, ...]
    parts: tuple[str, ...]  # of each of them
    crosses: bool  # the cut: each side has a copy, which nothing changes

    def __str__(self) -> str:
        named = " = ".join(self.names)
        return f"{named}: frozen, a copy on each side of the cut" if self.crosses else f"{named}: one tensor"


@dataclass(frozen=True, slots=True, eq=False)
class _Held:
    part: str
    name: str
    tensor: Tensor
    changes: bool  # in training

    @property
    def span(self) -> tuple[int, int]:
        """First and last address."""
        reach = sum((n - 1) * s for n, s in zip(self.tensor.shape, self.tensor.stride(), strict=True))
        start = self.tensor.data_ptr()
        return start, start + (reach + 1) * self.tensor.element_size()


def check_contents(module: nn.Module, model: str) -> None:
    """Raise ConfigError, naming each of them, if there are tensors that a run cannot carry."""
    found = [f"{name} {why}" for name, tensor in _carried(module) if (why := _reason_against(tensor))]
    if found:
        more = f", and {len(found) - 4} more" if len(found) > 4 else ""
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise ConfigError(
            f"model {model!r}: {'; '.join(found[:4])}{more}; a run carries dense tensors of {known}. Other buffers may stay on "
            "either side if they are registered with persistent=False"
        )


def settle_memory(module: nn.Module) -> None:
    """Give tensors of their own memory that are views of a kind which cannot be written to: conjugates, negatives, expanded ones."""
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


def ties_of(
    parts: Mapping[str, nn.Module], model: str, cut: int | str, changed: Collection[Tensor] = ()
) -> tuple[Tie, ...]:
    """Which tensors are one. `changed`: buffers that a training pass changed.

    Raises ConfigError, with both names, where the cut runs between them and one of them is trained, or where two share memory and are not one.
    """
    ids = {id(tensor) for tensor in changed}
    held = [
        _Held(part, name, tensor, (isinstance(tensor, nn.Parameter) and tensor.requires_grad) or id(tensor) in ids)
        for part, module in parts.items()
        for name, tensor in _all(module)
        if not tensor.is_meta and tensor.layout == torch.strided and tensor.numel()
    ]
    found = []
    for group in _groups(held):
        for a, b in _pairs(group):
            _check_pair(a, b, model, cut)
        names, sides = tuple(h.name for h in group), tuple(h.part for h in group)
        found.append(Tie(names, sides, len(set(sides)) > 1))
    return tuple(found)


def copies(ties: Sequence[Tie], part: str) -> list[str]:
    """Tensors of a part of which another one has a copy."""
    return [name for tie in ties if tie.crosses for name, own in zip(tie.names, tie.parts, strict=True) if own == part]


def _check_pair(a: _Held, b: _Held, model: str, cut: int | str) -> None:
    if not (a.changes or b.changes):
        return
    if a.part != b.part:
        a, b = sorted((a, b), key=lambda h: ("lower", "head", "aux").index(h.part))
        raise ConfigError(
            f"model {model!r} cut at model.cut = {cut!r}: {a.name} of the {a.part} and {b.name} of the {b.part} are one tensor (tied, "
            "or shared memory), and training would make two of it: cut where both are on one side, or freeze it with requires_grad_(False) on both"
        )
    if a.tensor is not b.tensor:
        raise ConfigError(
            f"model {model!r}: {a.name} and {b.name} share memory without being one tensor, and copies of the {a.part} would lose that: "
            "give both modules the same Parameter, or tensors of their own"
        )


def _carried(module: nn.Module) -> Iterator[tuple[str, object]]:
    """A module's parameters and persistent buffers with all of their names, and what else its state holds."""
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


def _all(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


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
    """Whether this machine's safetensors and torch know the type in files: it is tried."""
    try:
        back: Tensor = load(save({"x": torch.zeros(2).to(dtype)}))["x"]
        return back.dtype == dtype
    except Exception:  # whichever of the two does not
        return False


def _is_lazy(tensor: Tensor) -> bool:
    if tensor.layout != torch.strided or tensor.is_meta or isinstance(tensor, _SHAPELESS):
        return False
    return tensor.is_conj() or tensor.is_neg() or _overlaps_itself(tensor)


def _overlaps_itself(tensor: Tensor) -> bool:
    """Whether several elements lie in one place, as far as its strides tell at once."""
    if tensor.layout != torch.strided or tensor.numel() < 2:
        return False
    sides = [(n, s) for n, s in zip(tensor.shape, tensor.stride(), strict=True) if n > 1]
    return any(s == 0 for _, s in sides) or 1 + sum((n - 1) * s for n, s in sides) < tensor.numel()


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)


def _groups(held: Sequence[_Held]) -> list[list[_Held]]:
    """Those that share memory, each with one of the others at least."""
    placed = sorted(held, key=lambda h: h.span)
    groups: list[list[_Held]] = []
    near: list[_Held] = []
    end = -1
    for one in placed:
        if one.span[0] >= end:
            groups += _joined(near)
            near = []
        near.append(one)
        end = max(end, one.span[1])
    return groups + _joined(near)


def _joined(near: Sequence[_Held]) -> list[list[_Held]]:
    """Of those whose spans touch, groups whose elements do."""
    groups: list[list[_Held]] = []
    for one in near:
        mine = [group for group in groups if any(_meet(one.tensor, other.tensor) for other in group)]
        groups = [group for group in groups if group not in mine] + [[h for group in mine for h in group] + [one]]
    return [group for group in groups if len(group) > 1]


def _pairs(group: Sequence[_Held]) -> Iterator[tuple[_Held, _Held]]:
    """Enough of them to find what is wrong: neighbours by part, by whether they change and by memory."""
    yield from pairwise(sorted(group, key=lambda h: (h.part, id(h.tensor))))
    moving = next((h for h in group if h.changes), None)
    if moving is not None:
        yield from ((moving, other) for other in group if other is not moving)


def _meet(a: Tensor, b: Tensor) -> bool:
    """Whether some element of one lies where one of the other does."""
    if a is b or (a.is_contiguous() and b.is_contiguous()) or max(a.numel(), b.numel()) > _LOOKED_AT:
        return True
    return bool(np.isin(_places(a), _places(b)).any())


def _places(tensor: Tensor) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Addresses of all bytes that begin an element."""
    places = np.full(1, tensor.data_ptr(), np.int64)
    for n, s in zip(tensor.shape, tensor.stride(), strict=True):
        places = (places[:, None] + np.arange(n) * s * tensor.element_size()).reshape(-1)
    return places
