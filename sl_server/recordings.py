"""Batches that the server keeps for clients that a gate silences. They stay encoded and are decoded on use. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from torch import Tensor

from sl_common.codec import Coding, Identity, Link, Packed
from sl_common.messages import Epoch, Newest, Smashed
from sl_common.protocol import At
from sl_common.seeds import numpy_generator

_EXACT = Identity()


class Recordings:
    """The recorded batches of each client, by shard: activations as they came over the wire, and labels."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._kept: dict[int, deque[tuple[Packed, Tensor]]] = {}

    def begin(self, client: int, rule: Epoch | Newest | None) -> None:
        """A wave begins in which this client's batches are recorded, or not."""
        if isinstance(rule, Epoch):
            self._kept[client] = deque()

    def keep(self, client: int, batch: Smashed, rule: Epoch | Newest) -> None:
        """Keep a batch that was trained on."""
        kept = self._kept.setdefault(client, deque())
        kept.append((batch.packed or _EXACT.encode(batch.z, Coding()), batch.y))
        if isinstance(rule, Newest):
            samples = sum(len(y) for _, y in kept)
            while samples - len(kept[0][1]) >= rule.samples:
                samples -= len(kept.popleft()[1])

    def batches(self, client: int) -> int:
        """How many batches of a client are kept."""
        return len(self._kept.get(client, ()))

    def play(self, client: int, at: At) -> Iterator[Smashed]:
        """A client's batches, composed as they were, in an order drawn for this round, numbered anew; decoded one by one."""
        kept = list(self._kept.get(client, ()))
        order = numpy_generator(at.seed, "playback", at.round, client).permutation(len(kept))
        for step, index in enumerate(order):
            packed, y = kept[index]
            scheme = self._link.up if packed.layout.codec == self._link.up.kind else _EXACT
            z = scheme.decode(packed, Coding())
            yield Smashed(step=step, z=z, y=y, round=at.round, wave=at.wave, needs_grad=False)

    def forget(self, client: int) -> None:
        """A client that leaves takes its recordings with it."""
        self._kept.pop(client, None)
