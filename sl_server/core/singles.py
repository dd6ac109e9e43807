"""Batches of one sample, checked against the network before any client trains. Pure.

Law: a part of the network that cannot train on one sample never gets a batch of one. The parts on a client see that
client's own batches. So does the head, unless the barrier joins the batches of all clients that still train: then a
batch is alone only if no other client has so many batches in the wave.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import cached_property

import torch

from sl_common.config.run_config import RunConfig
from sl_common.dealing import Deal
from sl_common.errors import Unfit
from sl_common.network.network import Network
from sl_common.protocol import All, Always, Parallel
from sl_common.training.singles import reason_against_one

# Epochs of a wave that are searched for a batch of one that crosses the cut; a longer wave is assumed to have one.
_MAX_EPOCHS_SEARCHED = 1 << 10


class Singles:
    """The checks of one run. No part of the network is tried before a client has a batch of one."""

    def __init__(self, config: RunConfig, network: Network) -> None:
        self._config = config
        self._network = network
        protocol = config.protocol
        # Steps for an alignment are on one client's batch.
        self._joins = isinstance(protocol.barrier, All) and not protocol.aligns

    @cached_property
    def against(self) -> dict[str, str]:
        """The parts that cannot train on one sample, and why."""
        return self._tried(("lower", "head") if self._network.aux is None else ("lower", "head", "aux"), train=True)

    def _tried(self, parts: Sequence[str], *, train: bool) -> dict[str, str]:
        network = self._network
        z = torch.zeros(network.cut_shape, dtype=network.cut_dtype)
        likes = {part: torch.zeros(self._config.input) if part == "lower" else z for part in parts}
        tried = {part: reason_against_one(network.part(part), like, train=train) for part, like in likes.items()}
        return {part: reason for part, reason in tried.items() if reason is not None}

    def check_client(self, who: str, samples: int) -> None:
        """Raise Unfit if a client with so many training samples has a batch of one that a part cannot train on.

        The other clients do not matter here: `lone` finds batches that only lack company.
        """
        deal = self._config.deal(samples)
        if deal.smallest != 1:
            return
        learner = self._config.protocol.learner
        parts = {*learner.parts} | (set() if self._joins or not self._sends(deal) else {"head"})
        self._refuse(who, deal, parts)

    def check_head(self, who: str, samples: int) -> None:
        """Raise Unfit if this client's batch of one, alone in a cohort, cannot go through the head."""
        self._refuse(who, self._config.deal(samples), {"head"})

    def lone(self, samples: Mapping[int, int], together: int | None = None) -> list[int]:
        """Return the clients whose batch of one may be alone in the head.

        `samples`: of each client that trains in the wave. `together`: how many of them are drawn for it, if not all.
        """
        if not self._joins:
            return []
        deals = {client: self._config.deal(count) for client, count in samples.items()}
        wave, others = self._config.client.wave, (together or len(deals)) - 1
        steps = {client: wave.batches(deal.batches) for client, deal in deals.items()}
        ordered = sorted(steps.values())
        suspects = [c for c, deal in deals.items() if deal.smallest == 1 and self._sends(deal)]
        return [c for c in suspects if bisect_left(ordered, steps[c]) >= others and "head" in self.against]

    @property
    def takes_one(self) -> bool:
        """True if the head can train on one sample."""
        return "head" not in self.against

    def check_memory(self) -> None:
        """Raise Unfit if auxiliary networks are aligned with a single sample and cannot be."""
        gate, protocol = self._config.protocol.gate, self._config.protocol
        if protocol.aligns and isinstance(gate, Always) and gate.record == 1:
            for part in ("head", "aux"):
                if part in self.against:
                    raise Unfit(
                        f"protocol.gate.record = 1: {_part(part)} cannot take one sample ({self.against[part]})"
                    )

    def check_evaluation(self, samples: int | None) -> None:
        """Raise Unfit if evaluation would meet a batch of one that a part cannot take.

        `samples`: of the smallest part of the test set, where it is known. Loaders deal no batch of one where there are
        two samples and `data.batch_size` is at least 3.
        """
        config = self._config
        ones = [f"data.batch_size = {config.data.batch_size}"] if config.data.batch_size < 3 else []
        ones += ["eval.samples = 1"] if config.eval.samples == 1 else []
        ones += [f"{samples} test sample of a client"] if samples is not None and samples < 2 else []
        for part, reason in self._tried(("lower", "head"), train=False).items() if ones else ():
            raise Unfit(
                f"{ones[0]}: evaluation would ask about a single sample, which {_part(part)} cannot take ({reason})"
            )

    def _sends(self, deal: Deal) -> bool:
        """Return True if a batch of one may cross the cut."""
        wave, learner = self._config.client.wave, self._config.protocol.learner
        if learner.exchange == "nothing":
            return False
        epochs = wave.epochs or 1
        if wave.steps is not None or deal.batch_size == 1 or epochs > _MAX_EPOCHS_SEARCHED:
            return True
        sent = learner.sent(wave.batches(deal.batches))
        return any(_among(epoch * deal.batches - 1, sent) for epoch in range(1, epochs + 1))

    def _refuse(self, who: str, deal: Deal, parts: set[str]) -> None:
        for part in sorted(parts & self.against.keys()):
            raise Unfit(
                f"{who} has {deal.samples} training samples, of which data.batch_size = {deal.batch_size} "
                f"and data.last_batch = {deal.last!r} make a batch of one, "
                f"and {_part(part)} cannot train on one sample ({self.against[part]}); {_ways_out(deal)}"
            )


def drawn_together(config: RunConfig, clients: int) -> int:
    """Return how many of the clients train in one wave."""
    waves = config.protocol.waves
    return max(1, round(waves.fraction * clients)) if isinstance(waves, Parallel) else 1


def _among(number: int, ordered: Sequence[int]) -> bool:
    place = bisect_left(ordered, number)
    return place < len(ordered) and ordered[place] == number


def _part(part: str) -> str:
    return {"lower": "the lower segment", "head": "the head", "aux": "the auxiliary network"}[part]


def _ways_out(deal: Deal) -> str:
    if deal.batch_size == 1:
        return "data.batch_size must be at least 2"
    if deal.samples == 1:
        return "let each client have more samples: another data.partition or fewer data.shards"
    return (
        "let data.last_batch be 'drop' (left out of each epoch) "
        f"or 'merge' (in the batch before, of {deal.batch_size + 1}), or choose another data.batch_size"
    )
