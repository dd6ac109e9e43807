"""The cause of an overflow in a step of the head (it refuses such a loss or gradient): a batch, or the state. Pure.

Law: a client is to blame if its batch alone overflows while its copy of the head does not overflow on the batch that
this copy trained on last (on zeros before the first). Otherwise the state is to blame, and the run fails. The number of
clients does not matter, and no trial changes weights, optimisers or buffers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from sl_common.errors import Diverged
from sl_common.messages.training import Smashed
from sl_common.network.network import Network
from sl_common.protocol import Arrived, At, Head
from sl_common.training.bank import Bank
from sl_common.training.segment import Tree


class Blame:
    """Finds the cause. Keeps one batch for each copy of the head: as much memory as its activations and labels take."""

    def __init__(self, head: Head, bank: Bank, network: Network) -> None:
        self._head = head
        self._bank = bank
        self._network = network
        self._kept: dict[int | None, Arrived] = {}  # by the client that owns the copy; None: the shared copy

    def trained(self, cohort: Sequence[Arrived]) -> None:
        """Keep a batch of a cohort that a copy of the head has trained on with finite results."""
        last = cohort[-1]
        self._kept[self._copy(last.client)] = replace(last, batch=replace(last.batch, packed=None))

    def forget(self, client: int) -> None:
        """Forget a client's batch: its copy of the head is made anew."""
        self._kept.pop(client, None)

    def guilty(self, cohort: Sequence[Arrived], at: At, error: Diverged) -> list[int]:
        """Return the clients (at least one) without whose batches a step that failed with `error` would be finite.

        Raises Diverged if the state is to blame.
        """
        self.check_state(cohort[0].client, at, error)
        found = self._alone(cohort, at)
        while len(found) < len(cohort) and (rest := _without(cohort, found)) and not self._trial(rest, at):
            found.append(max(rest, key=lambda a: (_largest(a), a.client)).client)  # finite alone, not with the others
        return sorted(found)

    def _alone(self, cohort: Sequence[Arrived], at: At) -> list[int]:
        """Return the clients whose batches overflow without the others; found by bisection."""
        if self._trial(cohort, at):
            return []
        if len(cohort) == 1:
            return [cohort[0].client]
        middle = len(cohort) // 2
        return self._alone(cohort[:middle], at) + self._alone(cohort[middle:], at)

    def check_state(self, client: int, at: At, error: Diverged) -> None:
        """Raise Diverged unless this client's copy of the head is finite on the batch that it trained on last."""
        kept = self._kept.get(self._copy(client))
        if self._trial([self._zeros(client) if kept is None else kept], at):
            return
        what = "a batch of zeros" if kept is None else "the batch that it last trained on"
        raise Diverged(f"{error}; so it is on {what}, which makes the head's own state the cause, not a client")

    def _trial(self, cohort: Sequence[Arrived], at: At) -> bool:
        """Return True if a step would be finite. A single sample goes twice: batch norm has no statistics of one."""
        if len(cohort) == 1 and len(cohort[0].batch.y) == 1:
            batch = cohort[0].batch
            twice = replace(batch, z=torch.cat([batch.z, batch.z]), y=torch.cat([batch.y, batch.y]), packed=None)
            cohort = [replace(cohort[0], batch=twice)]
        return self._head.trial(self._bank, cohort, at)

    def _zeros(self, client: int) -> Arrived:
        size, network = 2, self._network
        z = torch.zeros(size, *network.cut_shape, dtype=network.cut_dtype)
        return Arrived(client=client, batch=Smashed(step=0, z=z, y=torch.zeros(size, dtype=torch.int64)), samples=size)

    def _copy(self, client: int) -> int | None:
        return client if self._bank.is_per_client("head") else None

    def snapshot(self) -> Tree:
        """Return the kept batches: without them a resumed run might blame a client for a state that it only met."""
        return {
            key: {"client": a.client, "samples": a.samples, "z": a.batch.z, "y": a.batch.y, "grad": a.batch.needs_grad}
            for key, a in self._kept.items()
        }

    def restore(self, tree: Tree) -> None:
        """Go back to a snapshot."""
        self._kept = {
            key: Arrived(
                client=one["client"],
                samples=one["samples"],
                batch=Smashed(step=0, z=one["z"], y=one["y"], needs_grad=one["grad"]),
            )
            for key, one in tree.items()
        }


def _without(cohort: Sequence[Arrived], clients: Sequence[int]) -> list[Arrived]:
    return [a for a in cohort if a.client not in clients]


def _largest(arrived: Arrived) -> float:
    return float(arrived.batch.z.abs().max())
