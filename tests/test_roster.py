"""Who is in a run: names keep their shards, and all who ever came are bounded."""

from __future__ import annotations

import pytest
from test_faults import simulated_sha
from world import World, make_config

from sl_common.errors import Refused
from sl_common.tree import dumps
from sl_server.core.roster import Roster

NAMES = 100


def come(roster: Roster, name: str, shard: int | None = None) -> int:
    """Join; the shard."""
    return roster.join(*roster.place(name, shard, None)).shard


def go(roster: Roster, name: str) -> None:
    roster[name].here = False


def test_a_checkpoint_does_not_grow_with_all_who_ever_came() -> None:
    """Clients with data of their own come under ever new names; one that was there from the start keeps its shard."""
    roster = Roster(4, sharded=False, names=NAMES)
    assert come(roster, "first") == 0
    sizes = []
    for number in range(5 * NAMES):
        come(roster, f"passing {number:04d}")
        go(roster, f"passing {number:04d}")
        sizes.append(len(dumps(roster.snapshot())))
    assert len(roster.known()) == NAMES
    assert max(sizes[NAMES:]) - sizes[NAMES] < 100, "the digits of numbers"
    go(roster, "first")
    roster["first"].here = True
    assert come(roster, "first") == 0
    assert sorted(member.shard for member in roster.known()) == list(range(NAMES))


def test_below_the_bound_nobody_is_forgotten() -> None:
    roster = Roster(4, sharded=False, names=NAMES)
    for number in range(NAMES):
        assert come(roster, f"c{number}") == number
        go(roster, f"c{number}")
    for number in reversed(range(NAMES)):
        assert come(roster, f"c{number}") == number, "everybody comes back to its own shard"


def test_those_who_are_here_are_never_forgotten() -> None:
    roster = Roster(2, sharded=False, names=3)
    for name in "abc":
        come(roster, name)
    with pytest.raises(Refused, match="all 3 shards of this run have a client"):
        come(roster, "d")
    with pytest.raises(Refused, match="3 shards of this run had a client already, shard 1000 is not among them"):
        come(roster, "d", 999)
    go(roster, "b")
    assert come(roster, "d") == 1
    assert roster.find("b") is None


def test_a_snapshot_goes_on_in_the_same_way() -> None:
    """The bound is kept, and the same newcomer gets the same place."""
    roster = Roster(2, sharded=False, names=3)
    for name in "abc":
        come(roster, name)
        go(roster, name)
    other = Roster(2, sharded=False, names=3)
    other.restore(roster.snapshot())
    assert [come(one, "d") for one in (roster, other)] == [0, 0]
    assert roster.snapshot() == other.snapshot()


def test_a_run_past_its_bound_goes_on() -> None:
    """Names beyond twice `server.limits.sessions` take the places of those who are gone; the run ends as it should."""
    config = make_config(
        "splitfed_v1", data__partition='{ kind = "own" }', run__rounds=2, server__limits="{ sessions = 3 }"
    )
    world = World(config)
    for number in range(12):
        client = world.join(f"passing {number}")
        if number < 9:
            world.lose(client)
    world.run()
    assert world.coordinator.ended is not None
    assert world.coordinator.ended.finished
    assert len(world.coordinator.roster.known()) <= 6


def test_a_client_with_its_own_data_may_come_late_or_under_another_name() -> None:
    """Its shard is one beyond those that the run began with, and its first word says no less."""
    config = make_config("splitfed_v1", data__partition='{ kind = "own" }', run__clients=1, run__rounds=2)
    world = World(config)
    for name in ("first", "gone", "again"):
        client = world.join(name)
        if name == "gone":
            world.lose(client)
    world.run()
    assert world.coordinator.ended is not None
    assert world.coordinator.ended.finished
    assert {m.name: m.shard for m in world.coordinator.roster.known() if m.taught} == {"first": 0, "again": 2}


def test_an_honest_runs_fingerprint_is_unchanged() -> None:
    """The same run with the bound at its default and far beyond."""
    shas = {simulated_sha(make_config("parallel", server__limits=f"{{ sessions = {n} }}")) for n in (4096, 50_000)}
    assert len(shas) == 1
