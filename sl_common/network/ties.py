"""Tied tensors: names of a network that are one tensor, within a part or across the cut.

Law: a tensor is on one side of the cut, unless nothing changes it: then each side has a copy.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from sl_common.config.run_config import RunConfig
from sl_common.errors import ConfigError
from sl_common.kinds import alike, is_real
from sl_common.models import Block, join
from sl_common.network.parts import blocks_of
from sl_common.seeds import seed_of

_LOOKED_AT = 1 << 22  # elements; larger tensors in one memory are not compared place by place


@dataclass(frozen=True, slots=True)
class Tie:
    """Names of one tensor, or of several tensors that share memory, in one part or in several."""

    names: tuple[str, ...]
    parts: tuple[str, ...]  # the part of each name
    crosses: bool  # the tie crosses the cut: each side has a copy, which nothing changes

    def __str__(self) -> str:
        named = " = ".join(self.names)
        return f"{named}: frozen, a copy on each side of the cut" if self.crosses else f"{named}: one tensor"


@dataclass(frozen=True, slots=True, eq=False)
class _Held:
    part: str
    name: str
    tensor: Tensor
    changes: bool  # training changes the tensor

    @property
    def span(self) -> tuple[int, int]:
        """First and last address."""
        reach = sum((n - 1) * s for n, s in zip(self.tensor.shape, self.tensor.stride(), strict=True))
        start = self.tensor.data_ptr()
        return start, start + (reach + 1) * self.tensor.element_size()


def ties_of(
    parts: Mapping[str, nn.Module], model: str, cut: int | str, changed: Collection[Tensor] = ()
) -> tuple[Tie, ...]:
    """Return the ties of a network. `changed` lists the buffers that a training pass changed.

    Raise ConfigError, with both names, if the cut runs between them and one of them is trained, or if two share memory
    but are not one tensor.
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
    """Return the names of a part's tensors of which another part has a copy."""
    return [name for tie in ties if tie.crosses for name, own in zip(tie.names, tie.parts, strict=True) if own == part]


def _check_pair(a: _Held, b: _Held, model: str, cut: int | str) -> None:
    if not (a.changes or b.changes):
        return
    if a.part != b.part:
        a, b = sorted((a, b), key=lambda h: ("lower", "head", "aux").index(h.part))
        raise ConfigError(
            f"model {model!r} cut at model.cut = {cut!r}: {a.name} of the {a.part} and {b.name} of the {b.part} are "
            "one tensor (tied, or shared memory), and training would make two of it: cut where both are on one side, "
            "or freeze it with requires_grad_(False) on both"
        )
    if a.tensor is not b.tensor:
        raise ConfigError(
            f"model {model!r}: {a.name} and {b.name} share memory without being one tensor, and copies of the "
            f"{a.part} would lose that: give both modules the same Parameter, or tensors of their own"
        )


def check_frozen_copies(
    ties: tuple[Tie, ...], config: RunConfig, blocks: list[Block], allowed: Collection[str] | None
) -> None:
    """Raise ConfigError if the copies of a frozen tensor on both sides of the cut would not be equal."""
    crossing = [tie for tie in ties if tie.crosses]
    if not crossing:
        return
    held = join(blocks).state_dict()
    names = [name for tie in crossing for name in tie.names if name in held]
    state = config.codec.state
    if (changed := [name for name in names if is_real(held[name].dtype)]) and state.kind != "identity":
        raise ConfigError(
            f"codec.state.kind = {state.kind!r}: {changed[0]} of model {config.model.name!r} is on both sides of the "
            "cut, and a copy that "
            "travels by this codec may be another one: take 'identity', or cut where both are on one side"
        )
    if config.client.initial == "own":
        others = join(blocks_of(config, seed_of(config.run.seed, "init", "other"), allowed)).state_dict()
        if drawn := [name for name in names if not alike(held[name], others[name])]:
            raise ConfigError(
                f"client.initial = 'own': {drawn[0]} of model {config.model.name!r} is on both sides of the cut and "
                "drawn at random, so that "
                "no client's copy would be the head's: cut where both are on one side, or take 'shared'"
            )


def _all(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _groups(held: Sequence[_Held]) -> list[list[_Held]]:
    """Return groups of tensors in which each shares memory with at least one other."""
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
    """Return groups whose elements touch, among tensors whose address ranges touch."""
    groups: list[list[_Held]] = []
    for one in near:
        mine = [group for group in groups if any(_meet(one.tensor, other.tensor) for other in group)]
        groups = [group for group in groups if group not in mine] + [[h for group in mine for h in group] + [one]]
    return [group for group in groups if len(group) > 1]


def _pairs(group: Sequence[_Held]) -> Iterator[tuple[_Held, _Held]]:
    """Yield enough pairs to find every fault.

    These are neighbours by part and memory, and one changing tensor with all others.
    """
    yield from pairwise(sorted(group, key=lambda h: (h.part, id(h.tensor))))
    moving = next((h for h in group if h.changes), None)
    if moving is not None:
        yield from ((moving, other) for other in group if other is not moving)


def _meet(a: Tensor, b: Tensor) -> bool:
    """Return True if an element of one tensor is at the place of an element of the other."""
    if a is b or (a.is_contiguous() and b.is_contiguous()) or max(a.numel(), b.numel()) > _LOOKED_AT:
        return True
    return bool(np.isin(_places(a), _places(b)).any())


def _places(tensor: Tensor) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return the addresses of all bytes that begin an element."""
    places = np.full(1, tensor.data_ptr(), np.int64)
    for n, s in zip(tensor.shape, tensor.stride(), strict=True):
        places = (places[:, None] + np.arange(n) * s * tensor.element_size()).reshape(-1)
    return places
