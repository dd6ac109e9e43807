"""From waiting batches to replies: the barrier picks a cohort, the head steps on it, clients get gradients. Pure."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from sl_common.errors import Diverged
from sl_common.messages.facts import ClientLate, Fact, Trained
from sl_common.messages.training import Gradient, Late, Newest, Smashed
from sl_common.protocol import Arrived, At, WaitUntil, Without
from sl_common.tensors import checksum
from sl_server.core.departures import Departures
from sl_server.core.evaluation import Evaluation
from sl_server.core.roster import Member
from sl_server.core.state import RunState
from sl_server.core.wave import Wave


class Cohorts:
    """Serves the batches of the wave that is under way."""

    def __init__(self, state: RunState, departures: Departures, evaluation: Evaluation) -> None:
        protocol = state.config.protocol
        self._barrier, self._head, self._bank = protocol.barrier, protocol.head, state.bank
        self._progress, self._roster, self._outbox = state.progress, state.roster, state.outbox
        self._alignments, self._recordings = state.alignments, state.recordings
        self._blame, self._singles = state.blame, state.singles
        self._departures, self._evaluation = departures, evaluation
        self.wake_at: float | None = None  # when the barrier is to be asked again, in seconds since the run began

    def serve(self, wave: Wave) -> bool:
        """Serve one cohort, or evaluate one batch. Return False if none is complete."""
        if not wave.waiting:
            return False
        self.wake_at = None
        if wave.evaluate:
            self._evaluation.serve(wave)
            return True
        at = wave.now(self._progress.now)
        cohort = self._barrier.cohort(wave.waiting.keys(), wave.training, at)
        if isinstance(cohort, WaitUntil):
            self.wake_at = cohort.now
            return False
        if isinstance(cohort, Without):
            for shard in cohort.late:
                self._go_on_without(wave, self._roster.by_shard(shard))
            cohort = cohort.cohort
        if cohort:
            self._train(wave, cohort, at)
        return bool(cohort)

    def _go_on_without(self, wave: Wave, member: Member) -> None:
        """Take a late client out of this wave, but not out of the next; its batches that were trained count."""
        member.trained += wave.training.get(member.shard, 0)
        member.late.append((wave.at.round, wave.at.wave))
        member.holds.clear()  # the weights that it has now are not merged
        wave.drop(member.shard)
        self._outbox.say(member.name, Late(round=wave.at.round, wave=wave.at.wave))
        self._outbox.report(ClientLate(client=member.name, round=wave.at.round, wave=wave.at.wave))

    def _train(self, wave: Wave, cohort: list[int], at: At) -> None:
        members = {client: self._roster.by_shard(client) for client in cohort}
        batches = {c: wave.next_of(c) for c in cohort}
        arrived = [
            Arrived(client=c, batch=self._alignments.with_gradient(batch), samples=members[c].samples)
            for c, batch in batches.items()
        ]
        replies = self._step(arrived, at)
        if not arrived:
            return
        wave.cohorts += 1
        wave.since = self._progress.now
        for a in arrived:
            reply, batch = replies[a.client], batches[a.client]
            wave.losses[a.client, batch.step] = (reply.loss, len(batch.y))
            name = members[a.client].name
            if wave.playback is None:
                self._outbox.say(name, reply if batch.needs_grad else replace(reply, dz=None))
            self._outbox.report(partial(_trained, name, a, at, reply.loss))
            self._record(wave, members[a.client], batch, reply)

    def _step(self, cohort: list[Arrived], at: At) -> dict[int, Gradient]:
        """Train the head on a cohort; remove from `cohort`, and expel, clients whose batches make that impossible."""
        if len(cohort) == 1 and len(cohort[0].batch.y) == 1 and not self._singles.takes_one:
            # The others that it would have trained with have left.
            self._departures.send_away(self._roster.by_shard(cohort.pop().client))
        while cohort:
            try:
                replies = self._head.step(self._bank, cohort, at)
            except Diverged as error:
                for client in self._blame.guilty(cohort, at, error):
                    (poisoned,) = (a for a in cohort if a.client == client)
                    cohort.remove(poisoned)
                    why = f"its batch {poisoned.batch.step} is to blame: {error}"
                    self._departures.expel(self._roster.by_shard(client), why)
            else:
                self._blame.trained(cohort)
                return replies
        return {}

    def _record(self, wave: Wave, member: Member, batch: Smashed, reply: Gradient) -> None:
        """Keep a batch if the gate asked for that, and align the client's auxiliary network after its first batch."""
        rule = wave.directive.record
        if rule is None:
            return
        stored = reply.dz * len(batch.y) if self._alignments.stores_targets and reply.dz is not None else None
        self._recordings.keep(member.shard, batch, rule, stored)
        if isinstance(rule, Newest) and batch.step == 0 and wave.begins[member.shard].directive.align:
            try:
                self._alignments.begin(member.name, member.shard, rule, wave.at)
            except Diverged as error:
                self._blame.check_state(member.shard, wave.at, error)
                self._departures.expel(member, f"its recorded batches are to blame: {error}")
                return
            wave.aligning.add(member.shard)


def _trained(client: str, arrived: Arrived, at: At, loss: float) -> Fact:
    return Trained(
        client=client,
        shard=arrived.client,
        round=at.round,
        wave=at.wave,
        step=arrived.batch.step,
        samples=len(arrived.batch.y),
        loss=loss,
        crc32=checksum(arrived.batch.z),
    )
