"""Copies of modules that have been used, whose stored activations torch refuses to copy with their history."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TypeVar

from torch import Tensor, nn

_Module = TypeVar("_Module", bound=nn.Module)
_DEPTH = 3  # containers within containers


def copied(module: _Module) -> _Module:
    """Return a deep copy.

    Tensors that a pass computed and the module kept (a weight that a hook makes before each pass, an attention map) are
    copied without their history.
    """
    memo: dict[int, object] = {id(t): t.detach().clone() for m in module.modules() for t in _computed(vars(m), _DEPTH)}
    return copy.deepcopy(module, memo)


def _computed(held: object, depth: int) -> Iterator[Tensor]:
    if isinstance(held, Tensor):
        if not held.is_leaf:
            yield held
    elif depth and isinstance(held, dict | list | tuple):
        for one in held.values() if isinstance(held, dict) else held:
            yield from _computed(one, depth - 1)
