"""After the run went back to a checkpoint: who was here then, who is back, and what each of them goes on from. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from sl_common.messages.training import Ready
from sl_server.core.roster import Member


class Rejoin:
    """Nobody is awaited in a run that never went back."""

    def __init__(self) -> None:
        self._awaited: dict[int, Member] = {}  # by shard, as they were at the checkpoint
        self._until = 0.0

    def __bool__(self) -> bool:
        return bool(self._awaited)

    @property
    def until(self) -> float:
        """How long those who are missing are waited for, in seconds since the run began."""
        return self._until

    def expect(self, members: Iterable[Member], until: float) -> None:
        """These were here at the checkpoint."""
        self._awaited = {member.shard: member for member in members}
        self._until = until

    def arrive(self, member: Member, ready: Ready, checkpoint: int) -> None:
        """A client that was here goes on from what it had then, if it still has it; else it begins anew."""
        before = self._awaited.pop(member.shard, None)
        if before is None or not checkpoint:  # at the beginning nobody had anything but what all begin with
            return
        if checkpoint in ready.snapshots:
            member.restore = checkpoint
        elif ready.intact and all(number < checkpoint for number in ready.snapshots):
            member.intact = True  # it has begun no wave since
        else:
            return
        member.holds, member.seen, member.taught = dict(before.holds), dict(before.seen), before.taught

    def give_up(self, now: float) -> list[Member]:
        """Those who are not back in time: they are not waited for any longer."""
        if not self._awaited or now < self._until:
            return []
        missing, self._awaited = list(self._awaited.values()), {}
        return missing
