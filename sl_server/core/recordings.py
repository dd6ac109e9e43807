"""Batches that the server records for clients that a gate silences. They stay encoded and are decoded on use. Pure.

The configuration limits their size: first in memory, then in the place that `spill` moves data to; then an error ends
the run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sl_common.codec import Coding, Identity, Layout, Link, Packed
from sl_common.codec.packed import DTYPES
from sl_common.config.server_section import Budget
from sl_common.errors import ConfigError
from sl_common.messages.training import Epoch, Newest, Smashed
from sl_common.protocol import At
from sl_common.seeds import numpy_generator
from sl_common.tensors import aligned_buffer
from sl_common.training.segment import Tree

Spill = Callable[[memoryview], memoryview]  # copies bytes elsewhere, as to a file, and returns a view of the copy
_EXACT = Identity()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Kept:
    packed: Packed
    y: Tensor
    target: Packed | None
    spilled: bool = False

    @property
    def nbytes(self) -> int:
        return self.y.nbytes + sum(one.layout.nbytes for one in (self.packed, self.target) if one is not None)


class Recordings:
    """The recorded batches of each client, by shard: labels, and activations in the encoding in which they arrived."""

    def __init__(self, link: Link, budget: Budget, spill: Spill | None = None) -> None:
        self._link = link
        self._budget = budget
        self._spill = spill
        self._kept: dict[int, deque[_Kept]] = {}
        self.memory_bytes = 0
        self.spilled_bytes = 0

    def begin(self, client: int, rule: Epoch | Newest | None) -> None:
        """Prepare for a wave in which this client's batches are recorded by `rule`, or not."""
        if isinstance(rule, Epoch):
            self.forget(client)

    def keep(self, client: int, batch: Smashed, rule: Epoch | Newest, target: Tensor | None = None) -> None:
        """Keep a trained batch, and its gradient `target` (B, *cut). Raises ConfigError if there is no room."""
        kept = self._kept.setdefault(client, deque())
        if isinstance(rule, Newest):
            samples = sum(len(one.y) for one in kept) + len(batch.y)
            while kept and samples - len(kept[0].y) >= rule.samples:
                samples -= len(kept[0].y)
                self._drop(kept.popleft())
        packed = batch.packed or _EXACT.encode(batch.z, Coding())
        kept.append(
            self._place(
                _Kept(
                    packed=packed, y=batch.y, target=None if target is None else _EXACT.encode(target.clone(), Coding())
                )
            )
        )

    def _place(self, one: _Kept) -> _Kept:
        if self.memory_bytes + one.nbytes <= self._budget.memory_mb * 1e6:
            self.memory_bytes += one.nbytes
            return one
        if self._spill is None or self.spilled_bytes + one.nbytes > self._budget.disk_mb * 1e6:
            raise ConfigError(
                f"recorded activations need more than server.recordings.memory_mb = {self._budget.memory_mb:g} and "
                f"server.recordings.disk_mb = {self._budget.disk_mb:g}: raise one of them, or take a codec for up"
            )
        self.spilled_bytes += one.nbytes
        return replace(one, packed=self._moved(one.packed), target=one.target and self._moved(one.target), spilled=True)

    def _moved(self, packed: Packed) -> Packed:
        assert self._spill is not None
        return replace(packed, data=self._spill(memoryview(packed.data).cast("B")))

    def _drop(self, one: _Kept) -> None:
        if one.spilled:
            self.spilled_bytes -= one.nbytes
        else:
            self.memory_bytes -= one.nbytes

    def batches(self, client: int) -> int:
        """Return the number of batches kept for a client."""
        return len(self._kept.get(client, ()))

    def play(self, client: int, at: At) -> Iterator[Smashed]:
        """Yield a client's batches, in an order drawn for this round, numbered anew; decode them one by one."""
        kept = list(self._kept.get(client, ()))
        order = numpy_generator(at.seed, "playback", at.round, client).permutation(len(kept))
        for step, index in enumerate(order):
            z = self._decoded(kept[index].packed)
            yield Smashed(step=step, z=z, y=kept[index].y, round=at.round, wave=at.wave, needs_grad=False)

    def newest(self, client: int, samples: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the newest samples, oldest first: z (N, *cut), y (N,), and their gradients if these were kept.

        Raises ValueError if nothing is kept.
        """
        kept = list(self._kept.get(client, ()))
        if not kept:
            raise ValueError(f"nothing is recorded of client {client}")
        targets = [_EXACT.decode(one.target, Coding()) for one in kept if one.target is not None]
        z, y = torch.cat([self._decoded(one.packed) for one in kept]), torch.cat([one.y for one in kept])
        return z[-samples:], y[-samples:], torch.cat(targets)[-samples:] if targets else None

    def _decoded(self, packed: Packed) -> Tensor:
        scheme = self._link.up if packed.layout.codec == self._link.up.kind else _EXACT
        return scheme.decode(packed, Coding())

    def snapshot(self) -> Tree:
        """Return everything that is kept, still encoded."""
        return {client: [_frozen(one) for one in kept] for client, kept in self._kept.items()}

    def restore(self, tree: Tree) -> None:
        """Go back to a snapshot. Raises ConfigError if there is no room for it."""
        for client in list(self._kept):
            self.forget(client)
        for client, kept in tree.items():
            self._kept[client] = deque(self._place(_thawed(one)) for one in kept)

    def forget(self, client: int) -> None:
        """Drop the recordings of a client that leaves."""
        for one in self._kept.pop(client, ()):
            self._drop(one)


def check_recorded(tree: Tree, cut: tuple[int, ...]) -> None:
    """Raise unless these are recordings of this cut: ValueError, or any error that a value of a wrong type causes."""
    for client, kept in tree.items():
        for one in kept:
            found = _thawed(one)
            if found.packed.layout.shape != (len(found.y), *cut) or not isinstance(client, int):
                raise ValueError(f"recorded {found.packed.layout.shape} of client {client!r}, this cut has {cut}")


def _frozen(one: _Kept) -> Tree:
    packed = [
        (p.layout.codec, DTYPES.index(p.layout.dtype), p.layout.shape, p.layout.params, bytes(p.data))
        for p in (one.packed, one.target)
        if p
    ]
    return {"y": one.y, "packed": packed}


def _thawed(tree: Tree) -> _Kept:
    packed = []
    for codec, dtype, shape, params, data in tree["packed"]:
        memory = aligned_buffer(len(data))
        memory[:] = data
        layout = Layout(codec=codec, dtype=DTYPES[dtype], shape=shape, nbytes=len(data), params=params)
        packed.append(Packed(layout=layout, data=memory))
    return _Kept(packed=packed[0], y=tree["y"], target=packed[1] if len(packed) > 1 else None)
