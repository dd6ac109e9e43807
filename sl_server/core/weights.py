"""Which weights all clients share, who holds them already, and which are a client's own. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping

from sl_common.network.network import Network
from sl_common.tensors import StateDict, state_digest
from sl_common.training.segment import Bank, Tree
from sl_server.core.roster import Member


class Weights:
    """The last merged weights of each part that clients hold, and what the server's bank holds besides."""

    def __init__(self, network: Network, parts: Iterable[str], bank: Bank, *, own: frozenset[str]) -> None:
        """`own`: parts of which every client begins with weights of its own."""
        self._own = own
        self._bank = bank
        self._shared: dict[str, StateDict] = {
            part: {name: t.detach().clone() for name, t in network.part(part).state_dict().items()} for part in parts
        }
        self._digests = {part: state_digest(state) for part, state in self._shared.items()}
        self._merges = dict.fromkeys([*self._shared, "head"], 0)  # part -> how often it was merged
        self._private: set[str] = set()  # parts that were trained since they were last merged

    def trained(self) -> None:
        """Clients have trained: until the next merge everybody's weights differ."""
        self._private |= self._merges.keys()

    def merge(self, merged: Mapping[str, StateDict]) -> None:
        """From now on all go on with these."""
        for part, state in merged.items():
            self._merges[part] += 1
            self._private.discard(part)
            if part in self._bank:
                self._bank.load(part, state)
            if part in self._shared:
                self._shared[part] = state
                self._digests[part] = state_digest(state)

    def is_shared(self, part: str) -> bool:
        """True if every client goes on with the same weights of this part."""
        return self._merges[part] > 0 and part not in self._private

    def news_for(self, member: Member) -> dict[str, StateDict]:
        """The parts that were merged since this client last heard, unless it holds just these weights already."""
        news = {}
        for part, state in self._shared.items():
            if member.seen.get(part) == self._merges[part]:
                continue
            member.seen[part] = self._merges[part]
            if part in self._own and not self._merges[part]:
                continue
            if member.holds.get(part) != self._digests[part]:
                news[part] = state
                member.holds[part] = self._digests[part]
        return news

    def snapshot(self) -> Tree:
        """What all share; the bank has a snapshot of its own."""
        return {"shared": self._shared, "merges": self._merges, "private": sorted(self._private)}

    def restore(self, tree: Tree) -> None:
        """Go back to a snapshot."""
        self._shared, self._merges, self._private = dict(tree["shared"]), dict(tree["merges"]), set(tree["private"])
        self._digests = {part: state_digest(state) for part, state in self._shared.items()}

    def on_server(self) -> dict[str, StateDict]:
        """What the server has: `lower` if all share it, `head`, or `head-<shard>` where copies differ."""
        states: dict[str, StateDict] = {"lower": self._shared["lower"]} if self.is_shared("lower") else {}
        copies = self._bank.copies("head")
        if copies and not self.is_shared("head"):
            return states | {f"head-{client}": segment.state() for client, segment in copies.items()}
        return states | {"head": self._bank.get("head").state()}

    def sha256(self, members: Collection[Member]) -> str:
        """One fingerprint of all weights of the run, the private ones by the digests that their clients reported."""
        sha = hashlib.sha256()
        digests = {name: state_digest(state) for name, state in self.on_server().items()}
        for part in self._shared.keys() - {"head"}:
            if self.is_shared(part):
                digests[part] = self._digests[part]
            else:
                digests |= {f"{part}-{m.shard}": m.holds[part] for m in members if part in m.holds}
        for name in sorted(digests):
            sha.update(name.encode() + b"\0" + digests[name])
        return sha.hexdigest()
