"""The ways in which a client leaves a run: by its own Leave, lost, or expelled for a fault. Pure."""

from __future__ import annotations

from sl_common.errors import Unfit
from sl_common.messages.facts import ClientLeft, RedoSpent
from sl_common.names import MAX_REASON
from sl_server.core.roster import Member
from sl_server.core.state import RunState


class Departures:
    """Removes members from the wave, the outbox and all records that count on them."""

    def __init__(self, state: RunState) -> None:
        self._progress, self._roster, self._outbox = state.progress, state.roster, state.outbox
        self._agreement, self._recordings, self._singles = state.agreement, state.recordings, state.singles
        self._redo, self._rejoin = state.redo, state.rejoin
        self.must_redo = False  # a client was lost: go back to the last checkpoint and wait for it

    def restore(self) -> None:
        """Forget a lost client: the run went back for it."""
        self.must_redo = False
        self._redo.went_back()

    def lose(self, member: Member) -> None:
        """Have the run go back for a lost client, unless it has caused that too often; once for all lost together."""
        if not member.ready or self.must_redo or self._progress.ended is not None:
            return
        self.must_redo = self._redo.spend(member.shard)
        if not self.must_redo:
            self._outbox.report(RedoSpent(client=member.name, shard=member.shard, limit=self._redo.limit))

    def leave(self, member: Member, reason: str) -> None:
        """Take a client out of the run. Unfinished work of it does not count."""
        was_ready, member.here, member.ready = member.ready, False, False
        self._recordings.forget(member.shard)
        progress = self._progress
        if progress.wave is not None:
            progress.wave.drop(member.shard)
        self._outbox.drop(member.name)
        alone = not progress.has_begun and not self._rejoin and not self._roster.ready()
        self._agreement.left(member.shard, alone=alone)
        if progress.ended is not None:  # nothing follows the end of a run
            return
        left = ClientLeft(client=member.name, shard=member.shard, reason=reason[:MAX_REASON], was_ready=was_ready)
        self._outbox.report(left)

    def expel(self, member: Member, why: str, did: str = "broke the protocol") -> None:
        """Refuse a client for a fault found during a turn. No event is logged: a replay finds the fault again."""
        self._outbox.expel(member.name, why)
        wave = self._progress.wave
        if wave is not None:
            wave.done.pop(member.shard, None)  # it may have ended its wave while its batch was waiting
        self.leave(member, f"{did}: {why}")

    def send_away(self, member: Member) -> None:
        """Expel a client whose batch of one would be alone in a head that cannot train on it; keep any other."""
        try:
            self._singles.check_head(f"client {member.name!r}", member.samples)
        except Unfit as error:
            self.expel(member, str(error), "cannot take part")
