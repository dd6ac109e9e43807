"""Who trains together: `plan(clients, at)` deals the clients of a round into waves that follow each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from sl_common.protocol.at import At
from sl_common.seeds import numpy_generator
from sl_common.value import Value


class Parallel(Value):
    """One wave of all clients, or of a seeded fraction of them (at least one)."""

    kind: Literal["parallel"] = "parallel"
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0

    def plan(self, clients: Sequence[int], at: At) -> list[list[int]]:
        """One wave, by shard."""
        wanted = max(1, round(self.fraction * len(clients)))
        if wanted == len(clients):
            return [sorted(clients)]
        drawn = numpy_generator(at.seed, "waves", at.round).choice(sorted(clients), wanted, replace=False)
        return [sorted(int(client) for client in drawn)]


class Sequential(Value):
    """A wave for each client in turn (Gupta & Raskar 2018): by shard, or in an order drawn anew each round."""

    kind: Literal["sequential"] = "sequential"
    shuffle: bool = False

    def plan(self, clients: Sequence[int], at: At) -> list[list[int]]:
        """As many waves as clients."""
        order = sorted(clients)
        if self.shuffle:
            order = [int(c) for c in numpy_generator(at.seed, "waves", at.round).permutation(order)]
        return [[client] for client in order]


Waves = Annotated[Parallel | Sequential, Field(discriminator="kind")]
