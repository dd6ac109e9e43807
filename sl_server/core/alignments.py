"""Alignment of the auxiliary networks that the server trains for clients: when it is due, and the job for it. Pure.

Law: the result of an alignment is decided when it begins. Its job owns a copy of the stored samples and their targets,
and nothing else uses the client's auxiliary segment until the result is handled; so the job may run in any thread, at
any time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from sl_common.config.run_config import RunConfig
from sl_common.errors import Diverged
from sl_common.messages.training import Aligned, Directive, Newest, Smashed
from sl_common.protocol import At
from sl_common.protocol.align import AlignmentSamples
from sl_common.tensors import all_finite
from sl_common.training.bank import Bank
from sl_common.training.segment import Segment, Tree
from sl_server.core.recordings import Recordings


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Job:
    """One client's alignment. `run` may be called once, from any thread; its result is an event of that client.

    `run` raises WireError if the client is to blame, Diverged if the state is.
    """

    client: str
    samples: int
    run: Callable[[], Aligned]


class Alignments:
    """The alignments of one run; there are none where the server trains no auxiliary network."""

    def __init__(self, config: RunConfig, bank: Bank, recordings: Recordings) -> None:
        self._config = config
        self._bank = bank
        self._recordings = recordings
        self._aligned: set[int] = set()  # shards whose clients' networks were aligned in their present life
        self._jobs: list[Job] = []

    def directive(self, shard: int, asked: Directive) -> Directive:
        """Return what to ask of one client: a network that was never aligned is aligned whatever the gate decided."""
        if not self._config.protocol.aligns or asked.warm or not (asked.send and asked.update):
            return asked
        return replace(asked, align=asked.align or shard not in self._aligned)

    def forget(self, shard: int) -> None:
        """Forget a client's alignment: its new life begins with a network that was not aligned."""
        self._aligned.discard(shard)

    def snapshot(self) -> Tree:
        """Return the aligned shards; between two waves no job is under way."""
        return sorted(self._aligned)

    def restore(self, tree: Tree) -> None:
        """Go back to a snapshot. Results of jobs that are under way will be ignored."""
        self._aligned, self._jobs = set(tree), []

    @property
    def stores_targets(self) -> bool:
        """True if a batch is recorded together with its own cut gradient."""
        return self._config.protocol.aligns and self._config.server.alignment.targets == "stored"

    def with_gradient(self, batch: Smashed) -> Smashed:
        """Return the batch for the head: one that asks for a gradient, if gradients are stored."""
        return replace(batch, needs_grad=True) if self.stores_targets else batch

    def begin(self, name: str, shard: int, record: Newest, at: At) -> None:
        """Take a client's newest samples and their targets, and make a job that `jobs` returns.

        Raises Diverged, with nothing changed, if these are not finite.
        """
        how = self._config.server.alignment
        head, aux = self._bank.get("head", shard), self._bank.get("aux", shard)
        z, y, stored = self._recordings.newest(shard, record.samples)
        draw = (at.seed, "align", at.round, shard)
        back = head.buffers()
        targets = stored if stored is not None else how.refresh(head, z, y, (*draw, "refresh"))
        if not all_finite(targets):
            back()
            raise Diverged(
                f"the targets of an alignment hold NaN or Inf in round {at.round + 1}: lower the learning rates"
            )
        device = aux.device
        memory = AlignmentSamples(z=z.to(device), y=y.to(device), targets=targets.to(device))
        aux.set_lr(how.lr(at.round, at.rounds))
        self._aligned.add(shard)

        def run(aux: Segment) -> Aligned:
            before, after = how.run(aux, memory, draw)
            return Aligned(round=at.round, wave=at.wave, weights={"aux": aux.state()}, before=before, after=after)

        self._jobs.append(Job(client=name, samples=len(y), run=partial(run, aux)))

    def jobs(self) -> list[Job]:
        """Return the jobs made since the last call."""
        jobs, self._jobs = self._jobs, []
        return jobs
