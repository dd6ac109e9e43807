"""Whose fault it is when a step of the head overflows (a loss or gradient that Head refuses): a client's batch, or the state that the batch met. Pure.

Law: a client is to blame if its batch alone overflows while the copy of the head that it met does not on
the batch that this copy trained on last (on zeros before the first). Otherwise the state is, and the run fails. How many
clients there are does not matter, and nothing that is tried changes weights, optimisers or buffers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from sl_common.errors import Diverged
from sl_common.messages.training import Smashed
from sl_common.network.network import Network
from sl_common.protocol import Arrived, At, Head
from sl_common.training.segment import Bank, Tree


class Blame:
    """Of one run. It keeps one batch for each copy of the head: as much memory as that batch's activations and labels."""

    def __init__(self, head: Head, bank: Bank, network: Network) -> None:
        self._head = head
        self._bank = bank
        self._network = network
        self._kept: dict[int | None, Arrived] = {}  # by the client whose copy it is; None: the copy of all

    def trained(self, cohort: Sequence[Arrived]) -> None:
        """A copy of the head has trained on this cohort, and all was finite."""
        last = cohort[-1]
        self._kept[self._copy(last.client)] = replace(last, batch=replace(last.batch, packed=None))

    def forget(self, client: int) -> None:
        """A client's copy of the head is made anew."""
        self._kept.pop(client, None)

    def guilty(self, cohort: Sequence[Arrived], at: At, error: Diverged) -> list[int]:
        """The clients without whose batches a step on this cohort, which failed by `error`, would be finite; at least one.

        Raises Diverged if the state is to blame.
        """
        self.check_state(cohort[0].client, at, error)
        found = self._alone(cohort, at)
        while len(found) < len(cohort) and (rest := _without(cohort, found)) and not self._trial(rest, at):
            found.append(max(rest, key=lambda a: (_largest(a), a.client)).client)  # finite alone, not with the others
        return sorted(found)

    def _alone(self, cohort: Sequence[Arrived], at: At) -> list[int]:
        """Those that are not finite by themselves, by bisection."""
        if self._trial(cohort, at):
            return []
        if len(cohort) == 1:
            return [cohort[0].client]
        middle = len(cohort) // 2
        return self._alone(cohort[:middle], at) + self._alone(cohort[middle:], at)

    def check_state(self, client: int, at: At, error: Diverged) -> None:
        """Raises Diverged unless the copy of the head that this client meets is finite on what it trained on last."""
        kept = self._kept.get(self._copy(client))
        if self._trial([self._zeros(client) if kept is None else kept], at):
            return
        what = "a batch of zeros" if kept is None else "the batch that it last trained on"
        raise Diverged(f"{error}; so it is on {what}, which makes the head's own state the cause, not a client")

    def _trial(self, cohort: Sequence[Arrived], at: At) -> bool:
        """Whether a step could be taken. A sample that is alone goes twice: not every head has statistics of one."""
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
        """The batches that are kept: without them a run that goes on might blame a client for a state that it found."""
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
