"""The weights that all clients share, and the record of which clients have them already. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping

from sl_common.network.network import Network
from sl_common.tensors import StateDict, state_digest
from sl_common.training.bank import Bank
from sl_common.training.segment import Tree
from sl_server.core.roster import Member


class Weights:
    """The last merged weights of each part that lives on clients; the parts of the server live in its bank."""

    def __init__(self, network: Network, parts: Iterable[str], bank: Bank, *, own: frozenset[str]) -> None:
        """`own`: parts for which every client begins with weights of its own."""
        self._own = own
        self._bank = bank
        self._shared: dict[str, StateDict] = {
            part: {name: t.detach().clone() for name, t in network.part(part).state_dict().items()} for part in parts
        }
        self._digests = {part: state_digest(state) for part, state in self._shared.items()}
        self._merges = dict.fromkeys([*self._shared, "head"], 0)  # part -> number of merges
        self._private: set[str] = set()  # parts that were trained since their last merge

    def trained(self) -> None:
        """Record that clients have trained: until the next merge their weights differ."""
        self._private |= self._merges.keys()

    def merge(self, merged: Mapping[str, StateDict]) -> None:
        """Let all clients go on with these weights."""
        for part, state in merged.items():
            self._merges[part] += 1
            self._private.discard(part)
            if part in self._bank:
                self._bank.load(part, state)
            if part in self._shared:
                self._shared[part] = state
                self._digests[part] = state_digest(state)

    def is_shared(self, part: str) -> bool:
        """Return True if every client goes on with the same weights of this part."""
        return self._merges[part] > 0 and part not in self._private

    def news_for(self, member: Member) -> dict[str, StateDict]:
        """Return the parts that were merged since this client last got weights, without those that it has."""
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
        """Return the shared weights; the bank has a snapshot of its own."""
        return {"shared": self._shared, "merges": self._merges, "private": sorted(self._private)}

    def restore(self, tree: Tree) -> None:
        """Go back to a snapshot."""
        self._shared, self._merges, self._private = dict(tree["shared"]), dict(tree["merges"]), set(tree["private"])
        self._digests = {part: state_digest(state) for part, state in self._shared.items()}

    def on_server(self) -> dict[str, StateDict]:
        """Return the server's weights: `lower` if all share it, `head`, or `head-<shard>` where copies differ."""
        states: dict[str, StateDict] = {"lower": self._shared["lower"]} if self.is_shared("lower") else {}
        copies = self._bank.copies("head")
        if copies and not self.is_shared("head"):
            return states | {f"head-{client}": segment.state() for client, segment in copies.items()}
        return states | {"head": self._bank.get("head").state()}

    def sha256(self, members: Collection[Member]) -> str:
        """Return a fingerprint of all weights of the run; private ones by the digests that clients reported."""
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
