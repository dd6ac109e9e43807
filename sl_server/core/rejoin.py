"""The return of clients after a run went back to a checkpoint: which are awaited, and what each goes on from. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from sl_common.messages.training import Ready
from sl_server.core.roster import Member


class Rejoin:
    """The clients that were here at the checkpoint and are not back; empty in a run that never went back."""

    def __init__(self) -> None:
        self._awaited: dict[int, Member] = {}  # by shard, as they were at the checkpoint
        self._until = 0.0

    def __bool__(self) -> bool:
        return bool(self._awaited)

    @property
    def until(self) -> float:
        """The time at which missing clients are given up, in seconds since the run began."""
        return self._until

    def expect(self, members: Iterable[Member], until: float) -> None:
        """Await these clients, which were here at the checkpoint."""
        self._awaited = {member.shard: member for member in members}
        self._until = until

    def arrive(self, member: Member, ready: Ready, checkpoint: int) -> None:
        """Let a client that was here go on from the state that it had then, if it still has it; else it begins anew."""
        before = self._awaited.pop(member.shard, None)
        if before is None or not checkpoint:  # before the first wave every client has the initial weights
            return
        if checkpoint in ready.snapshots:
            member.restore = checkpoint
        elif ready.intact and all(number < checkpoint for number in ready.snapshots):
            member.intact = True  # it has begun no wave since the checkpoint
        else:
            return
        member.holds, member.seen, member.taught = dict(before.holds), dict(before.seen), before.taught

    def give_up(self, now: float) -> list[Member]:
        """Return the clients that are not back in time; they are no longer awaited."""
        if not self._awaited or now < self._until:
            return []
        missing, self._awaited = list(self._awaited.values()), {}
        return missing
