"""The members of a run: names, shards, and the weights that each client has. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace

from sl_common.errors import Refused
from sl_common.training.segment import Tree


@dataclass(kw_only=True, slots=True)
class Member:
    """One client, for as long as its name is known."""

    name: str
    shard: int
    here: bool = False
    ready: bool = False
    samples: int = 0  # |Dᵢ|
    batches: int = 0  # in one of its epochs
    taught: bool = False  # has finished a training wave in this life
    trained: int = 0  # batches since the run began: the position of its loader
    holds: dict[str, bytes] = field(default_factory=dict)  # part -> digest of the weights it has
    seen: dict[str, int] = field(default_factory=dict)  # part -> number of the merge whose weights it got last
    late: list[tuple[int, int]] = field(default_factory=list)  # waves (round, wave) that went on without it
    restore: int = 0  # checkpoint that its next Begin tells it to go back to; 0: none
    intact: bool = False  # its next Begin tells it to go on from its state when the server was lost


class Roster:
    """The names of a run, which keep their shard. A new name gets the lowest free shard.

    If none is free, it gets the lowest one whose client is gone: a device that is replaced by another must not leave
    its data without a client. There are never more names than shards, so a checkpoint does not grow with every client.
    """

    def __init__(self, shards: int, sharded: bool, names: int) -> None:
        """`names`: the most to keep where clients have data of their own, and every new name brings a shard."""
        self.shards = shards
        self._sharded = sharded
        self._most = shards if sharded else max(shards, names)
        self._members: dict[str, Member] = {}
        self._by_shard: dict[int, Member] = {}  # the last member that had it

    def __getitem__(self, name: str) -> Member:
        return self._members[name]

    def find(self, name: str) -> Member | None:
        """Return the member of that name, or None."""
        return self._members.get(name)

    def by_shard(self, shard: int) -> Member:
        """Return the member that has this shard."""
        return self._by_shard[shard]

    def ready(self) -> list[Member]:
        """Return the members that can train, by shard."""
        return sorted((m for m in self._members.values() if m.ready), key=lambda m: m.shard)

    def known(self) -> list[Member]:
        """Return all members, also those that are gone, by shard."""
        return sorted(self._members.values(), key=lambda m: m.shard)

    def place(self, name: str, shard: int | None, shards: int | None) -> tuple[str, int]:
        """Return the name and shard that a newcomer gets; change nothing. Raises Refused if there is no place."""
        if shards is not None and shards != self.shards:
            raise Refused("shard", f"client says there are {shards} shards, this run has {self.shards}")
        if shard is not None and self._sharded and shard >= self.shards:
            raise Refused("shard", f"shard {shard + 1} is out of range, this run has shards 1 to {self.shards}")
        known = self._members.get(name)
        if known is not None:
            if shard not in (None, known.shard):
                raise Refused(
                    "shard", f"client {name!r} has shard {known.shard + 1} in this run and asks for {shard + 1}"
                )
            return name, known.shard
        if shard is None:
            shard = self._free_shard()
        else:
            holder = self._by_shard.get(shard)
            if holder is not None and holder.here:
                raise Refused("shard", f"shard {shard + 1} belongs to client {holder.name!r}")
            if holder is None and len(self._by_shard) >= self._most:
                raise Refused(
                    "full", f"{self._most} shards of this run had a client already, shard {shard + 1} is not among them"
                )
        return name or self._free_name(shard), shard

    def _free_shard(self) -> int:
        if len(self._by_shard) < self._most:
            return next(n for n in range(len(self._by_shard) + 1) if n not in self._by_shard)
        gone = [n for n, member in self._by_shard.items() if not member.here]
        if not gone:
            raise Refused("full", f"all {self._most} shards of this run have a client; data.shards would make room")
        return min(gone)

    def join(self, name: str, shard: int) -> Member:
        """Add a new life: it has no weights, but the shard's loader goes on where the last life was."""
        before = self._by_shard.get(shard)
        if before is not None:
            del self._members[before.name]
        member = Member(name=name, shard=shard, here=True, trained=before.trained if before else 0)
        self._members[name] = self._by_shard[shard] = member
        return member

    def snapshot(self) -> Tree:
        """Return all members."""
        return [asdict(member) for member in self.known()]

    def restore(self, tree: Tree) -> list[Member]:
        """Go back to a snapshot, with no client here. Return the members that were ready then, by shard."""
        members = [Member(**fields) for fields in tree]
        ready = [replace(member) for member in members if member.ready]
        for member in members:
            member.here = member.ready = False
        self._members = {member.name: member for member in members}
        self._by_shard = {member.shard: member for member in members}
        return ready

    def _free_name(self, shard: int) -> str:
        name = f"c{shard}"
        while name in self._members and self._members[name].shard != shard:
            name += "+"
        return name
