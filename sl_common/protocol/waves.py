"""Plans of a round: `plan(clients, at)` deals its clients into waves that follow each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from sl_common.protocol.at import At
from sl_common.seeds import numpy_generator
from sl_common.value import Value


class Parallel(Value):
    """One wave of all clients, or of a seeded fraction of them (at least one)."""

    kind: Literal["parallel"] = Field(
        "parallel", description="One wave of all clients, or of a random fraction of them."
    )
    fraction: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Fraction of the clients that train in a round, at least one; drawn anew each round.",
    )

    def plan(self, clients: Sequence[int], at: At) -> list[list[int]]:
        """Return one wave, by shard."""
        wanted = max(1, round(self.fraction * len(clients)))
        if wanted == len(clients):
            return [sorted(clients)]
        drawn = numpy_generator(at.seed, "waves", at.round).choice(sorted(clients), wanted, replace=False)
        return [sorted(int(client) for client in drawn)]


class Sequential(Value):
    """A wave for each client in turn (Gupta & Raskar 2018): by shard, or in an order drawn anew each round."""

    kind: Literal["sequential"] = Field("sequential", description="One wave for each client, one after the other.")
    shuffle: bool = Field(False, description="Draw a new order each round; false: by shard.")

    def plan(self, clients: Sequence[int], at: At) -> list[list[int]]:
        """Return as many waves as clients."""
        order = sorted(clients)
        if self.shuffle:
            order = [int(c) for c in numpy_generator(at.seed, "waves", at.round).permutation(order)]
        return [[client] for client in order]


Waves = Annotated[Parallel | Sequential, Field(discriminator="kind")]
