"""Comparison of the data and the network that clients declare at Ready with other clients and the server's build. Pure.

Law: a difference that the configuration does not accept is refused with both values, and only its client is refused.
A client that declares nothing is not compared: this finds mistakes, not lies.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cached_property

import torch

from sl_common.config.run_config import RunConfig
from sl_common.errors import Refused, WireError
from sl_common.holdings import Build, DataSet, Inputs, apart
from sl_common.messages.training import Ready
from sl_common.network.builds import build_difference, builds_of, is_release
from sl_common.network.network import Network
from sl_common.training.segment import Alone, Tree
from sl_server.core.scales import scale_warning

_MAX_GROUPS_REPORTED = 100  # groups of clients with equal data sets; names can be made up, so this must end
_OTHER_UNITS = 16  # a ratio of the largest numbers of two clients that means other units, not other samples


@dataclass(frozen=True, kw_only=True, slots=True)
class _Held:
    """One client's data set."""

    client: str
    data: DataSet


class Agreement:
    """The data and the network that the clients of one run have in common."""

    def __init__(self, config: RunConfig, network: Network, alone: Alone | None = None) -> None:
        """`alone`: a lock, held while the global random generator is seeded for a trial pass."""
        self._config, self._network, self._alone = config, network, alone or nullcontext()
        self._first: _Held | None = None  # where one set is split over the clients: the set that all others must have
        self._own: dict[int, _Held] = {}  # by shard, where clients have sets of their own
        self._reported: set[tuple[str, ...]] = set()  # groups of clients with equal sets that were reported
        self._mixed = False  # the clients' inputs have several dtypes
        self._inputs: Inputs | None = None  # of all clients so far
        self._scale: Inputs | None = None  # of the first of those that have sets of their own

    @property
    def inputs(self) -> Inputs | None:
        """The common form of all clients' inputs so far; None if it is not known, or if they differ."""
        if self._inputs is None or self._first is None:
            return self._inputs
        return replace(self._inputs, digest=self._first.data.digest)

    @cached_property
    def _builds(self) -> dict[str, Build]:
        """The server's own builds, made when the first client declares one."""
        parts = self._config.protocol.learner.parts
        return {build.part: build for build in builds_of(self._config, self._network, parts, self._alone)}

    def check(self, client: str, shard: int, ready: Ready) -> list[str]:
        """Count a client in, and return its accepted differences, a sentence each. Raises Refused or WireError."""
        doubts = self._check_builds(client, ready)
        data = ready.data
        if data is None:
            return doubts
        found = self._compare(client, data)
        if found and self._config.sharded:
            if self._config.data.differs == "refuse":
                raise Refused("data", found)
            doubts.append(found)
        elif found:
            doubts.append(found)
        if not self._config.sharded:
            self._own[shard] = _Held(client=client, data=_slim(data))
        elif self._first is None:
            self._first = _Held(client=client, data=data)
        self._merge(data.inputs)
        return doubts

    def left(self, shard: int, *, alone: bool) -> None:
        """Forget a client. `alone`: nothing is trained, no client is ready; the next one defines the common set."""
        self._own.pop(shard, None)
        if alone:
            self._first, self._inputs, self._mixed = None, None, False

    # --- networks

    def _check_builds(self, client: str, ready: Ready) -> list[str]:
        if not ready.builds:
            return []
        parts = [build.part for build in ready.builds]
        if sorted(parts) != sorted(self._builds):
            raise WireError(f"ready with builds of {parts!s:.200}, expected each of {sorted(self._builds)} once")
        same_torch = is_release(ready.torch, torch.__version__)
        dtype = self._network.cut_dtype
        for theirs in ready.builds:
            found = build_difference(theirs, self._builds[theirs.part], same_torch=same_torch, dtype=dtype)
            if found:
                return [self._other_network(client, theirs.part, found)]
        return []

    def _other_network(self, client: str, part: str, found: str) -> str:
        name = self._config.model.name
        text = f"{client}: its {part} part of model {name!r} is not the one that the server built: {found}"
        if self._config.model.differs == "accept":
            return f"{text}; taken all the same: model.differs = 'accept'"
        raise Refused("model", f"{text}; use one file of code everywhere, or model.differs = 'accept'")

    # --- data

    def _compare(self, client: str, data: DataSet) -> str:
        """Return how a client's set differs from the expected one, or an empty string."""
        if not self._config.sharded:
            return self._other_units(client, data.inputs)
        pinned, first = self._config.data.digest, self._first
        accept = "" if self._config.data.differs == "refuse" else "; taken all the same"
        advice = f"{accept}; data.differs = 'accept' takes any set"
        if pinned is not None and data.digest != pinned:
            return f"{client}: loaded another set than data.digest = {pinned!r}: {data}{advice}"
        if first is None:
            return ""
        if pinned is None and data.digest != first.data.digest:
            return (
                f"{client}: loaded another set than {first.client}: {data}; "
                f"{first.client}, which came first, has {first.data}. "
                f"If {first.client}'s is the wrong one, pin the right one: data.digest = {data.digest!r}{advice}"
            )
        for what in ("means of samples", "mean", "std"):
            pair = (data.means, first.data.means)
            if what != "means of samples":
                pair = (getattr(data.inputs, what), getattr(first.data.inputs, what))
            far = apart(*pair)
            if far is not None:
                where = "its numbers are others" if what == "means of samples" else f"it normalises with another {what}"
                return (
                    f"{client}: {where} than {first.client}'s, which came first: {far[0]:.6g} ({data.inputs}) "
                    f"where that has {far[1]:.6g} ({first.data.inputs}){advice}"
                )
        return ""

    def _other_units(self, client: str, inputs: Inputs) -> str:
        """Return a doubt if a client's own data have another dtype or magnitude than those before, or ''."""
        known = self._inputs
        if known is None or known.dtype != inputs.dtype:
            differs = known is not None
        else:
            ours, theirs = (max(abs(one.low), abs(one.high)) for one in (known, inputs))
            differs = bool(ours and theirs) and not 1 / _OTHER_UNITS <= theirs / ours <= _OTHER_UNITS
        if differs:
            return (
                f"{client}: its own data are {inputs}, those of the clients before it {known}: are they in the same "
                "units?"
            )
        if self._scale is None:
            self._scale = inputs
        return scale_warning(client, inputs, self._scale)

    def _merge(self, inputs: Inputs) -> None:
        known = self._inputs
        if self._mixed or (known is not None and known.dtype != inputs.dtype):
            self._mixed, self._inputs = True, None
        elif known is None:
            self._inputs = inputs
        else:
            low, high = min(known.low, inputs.low), max(known.high, inputs.high)
            self._inputs = replace(known, low=low, high=high)
            if apart(inputs.mean, known.mean) is not None or apart(inputs.std, known.std) is not None:
                self._inputs = replace(self._inputs, mean=(), std=())

    # --- clients with data of their own that is the same

    def test_slices(self, shards: Sequence[int]) -> dict[int, tuple[int, int]]:
        """Return (slice, slices) for each client that has a test set of its own.

        Clients with equal test sets share them, so that no sample counts twice.
        """
        groups: dict[bytes, list[int]] = {}
        for shard in shards:
            held = self._own.get(shard)
            groups.setdefault(str(shard).encode() if held is None else held.data.test_sha256, []).append(shard)
        return {shard: (place, len(group)) for group in groups.values() for place, shard in enumerate(group)}

    def same_sets(self, shards: Collection[int]) -> list[tuple[tuple[str, ...], str]]:
        """Return, once each, groups of clients with equal sets that should differ, and a text about each group."""
        groups: dict[str, list[str]] = {}
        for shard in sorted(self._own.keys() & set(shards)):
            held = self._own[shard]
            groups.setdefault(held.data.digest, []).append(held.client)
        new = [group for names in groups.values() if len(names) > 1 and (group := tuple(names)) not in self._reported]
        new = new[: _MAX_GROUPS_REPORTED - len(self._reported)]
        self._reported.update(new)
        return [(names, self._one_set(names, len(shards))) for names in new]

    def _one_set(self, names: tuple[str, ...], clients: int) -> str:
        who = f"all {clients} clients" if len(names) == clients else f"{len(names)} of {clients} clients"
        listed = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
        return (
            f"{who} ({listed}) loaded the same set, although data.partition.kind = 'own' says that each has its own; "
            "where its test samples are evaluated through one network, each counts once"
        )

    # --- checkpoints

    def snapshot(self) -> Tree:
        """Return the common set and the clients' own ones."""
        return {
            "first": None if self._first is None else asdict(self._first),
            "own": {shard: asdict(held) for shard, held in self._own.items()},
            "inputs": None if self._inputs is None else asdict(self._inputs),
            "mixed": self._mixed,
        }

    def restore(self, tree: Tree) -> None:
        """Go back to a snapshot. An empty one, of an older version, lets the next client define the common set."""
        first, inputs = tree.get("first"), tree.get("inputs")
        self._first = None if first is None else _held(first)
        self._own = {int(shard): _held(fields) for shard, fields in tree.get("own", {}).items()}
        self._inputs = None if inputs is None else Inputs(**inputs)
        if self._inputs is not None:
            self._inputs.check()
        self._mixed = bool(tree.get("mixed", False))


def _held(fields: Tree) -> _Held:
    data = DataSet(**(fields["data"] | {"inputs": Inputs(**fields["data"]["inputs"])}))
    data.check()
    return _Held(client=str(fields["client"]), data=data)


def _slim(data: DataSet) -> DataSet:
    """Return the set without its lists: clients' own sets are compared by digest, and there may be thousands."""
    return replace(data, means=(), inputs=replace(data.inputs, mean=(), std=()))
