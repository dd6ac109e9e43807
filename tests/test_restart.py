"""A server that dies goes on from its last checkpoint, its clients from theirs, and nothing shows: the weights are the same bits."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_faults import assert_finished, batches_of, simulated_sha
from world import Client, World, make_config

from sl_client.training.snapshots_on_disk import find_snapshots
from sl_common.client.seat import Seat
from sl_common.client.snapshots import Snapshots
from sl_common.config.presets import PRESETS
from sl_common.config.run_config import RunConfig
from sl_common.errors import ConfigError, DataError, WireError
from sl_common.messages.events import Restored, Saved, Tick
from sl_common.messages.facts import ClientLeft, RedoSpent, RoundEnded
from sl_common.messages.training import Begin, Welcome
from sl_common.network.network import Network
from sl_common.training.segment import Tree
from sl_common.tree import MAGIC, dumps, loads
from sl_server.core.coordinator import Coordinator
from sl_server.core.redo import RedoBudget
from sl_server.core.sessions import Sessions
from sl_server.simulation.replay import replay_events
from sl_server.storage.checkpoint import Checkpoints


class RestartWorld(World):
    """Keeps a checkpoint before the first wave and after every other (or every so many), and can lose its server or a client's process."""

    def __init__(self, config: RunConfig, seed: int = 0, keep_every: int = 1) -> None:
        super().__init__(config, seed)
        self.keep_every = keep_every
        self.kept: tuple[bytes, int] | None = None  # as bytes on a disk; how many facts there were
        self.beginning = copy.deepcopy(self.sessions.snapshot())
        self._rests = 0
        self.crashes = 0
        self.disks: dict[str, Tree] = {}
        self.forgetful: set[str] = set()  # clients whose processes keep nothing

    def _can_advance(self) -> bool:
        coordinator, stage = self.coordinator, self.coordinator.stage
        if stage == "checkpoint" or (stage == "rest" and coordinator.completed_waves != self._rests):
            self._rests = coordinator.completed_waves
            if coordinator.completed_waves % self.keep_every == 0:
                self.kept = dumps(self.sessions.snapshot()), len(self.facts)
                self.sessions.saved()
        return super()._can_advance()

    def crash(self) -> None:
        """The server's process is gone; another one takes up the checkpoint, or begins anew; the clients come again."""
        self.crashes += 1
        self.jobs.clear()
        self.coordinator = Coordinator(self.config, Network.build(self.config))
        self.sessions = Sessions(self.coordinator, incarnation=2 + self.crashes)
        if self.kept is not None:
            self.sessions.restore(loads(self.kept[0]))
        self.come_back()

    def kill_client(self, name: str) -> None:
        """A client's process is gone, its snapshots are on a disk, and another one takes its place at once."""
        client = self.clients[name]
        self.lose(client)
        client.gone = False
        if self.coordinator.stage == "redo":
            tree = loads(self.kept[0]) if self.kept else copy.deepcopy(self.beginning)
            self.jobs.clear()
            self.sessions.restore(tree)
            self.come_back(dead=name)
        elif self.coordinator.ended is None:
            self.join(name, self.on_disk(client))

    def on_disk(self, client: Client) -> Snapshots | None:
        """What a killed process leaves: its snapshots, but not what it had in memory."""
        left = client.past if client.seat is None else client.seat.snapshots
        if left is None or self.kept is None:
            return None
        return Snapshots(left.run, left._kept, self.disks.get(client.session.client), save_last=left._save_last)

    def take_seat(self, welcome: Welcome) -> Seat:
        """Every client has a disk for what it has after each wave."""

        def save_last(tree: Tree) -> None:
            self.disks[welcome.client] = tree

        return replace(super().take_seat(welcome), snapshots=Snapshots("", save_last=save_last))

    def come_back(self, dead: str = "") -> None:
        """Everybody who is there joins again, under the name that it has."""
        self._rests = self.coordinator.completed_waves
        self.facts = self.facts[: self.kept[1] if self.kept else 0]
        for name, client in list(self.clients.items()):
            if client.gone:
                continue
            known = self.kept is not None and name not in self.forgetful  # else another run, as far as they know
            left = self.on_disk(client) if name == dead else client.final_snapshots()
            self.join(name, left if known else None)


def restarted(config: RunConfig, seed: int, every: int, crashes: int = 3, keep_every: int = 1) -> RestartWorld:
    world = RestartWorld(config, seed, keep_every)
    for _ in range(config.run.clients):
        world.join()
    for _ in range(crashes):
        world.run(until=every)
        if world.coordinator.ended is None:
            world.crash()
    return world.run()


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("every", [9, 31, 44, 67])
def test_a_server_that_dies_anywhere_changes_nothing(preset: str, every: int) -> None:
    """Bit for bit, and every batch trained once, by what counts."""
    config = make_config(preset, run__rounds=3, model__args="{ hidden = [16], batch_norm = true, dropout = 0.2 }")
    world = restarted(config, every, every)
    assert_finished(world)
    assert world.crashes
    assert world.coordinator.weights_sha256() == simulated_sha(config)
    assert len(batches_of(world)) == len(set(batches_of(world)))


@pytest.mark.parametrize("keep_every", [1, 2, 3])
@pytest.mark.parametrize("preset", ["sequential", "splitfed_v1", "fsl_sage", "loss_async"])
def test_an_older_checkpoint_does_too(preset: str, keep_every: int) -> None:
    gate = {"protocol__gate__threshold": 1e300} if preset == "loss_async" else {}
    optimizer = '{ kind = "adam", lr = 0.002 }'
    config = make_config(preset, run__rounds=5, client__optimizer=optimizer, server__optimizer=optimizer, **gate)
    world = restarted(config, keep_every, 61, crashes=4, keep_every=keep_every)
    assert_finished(world)
    assert world.coordinator.weights_sha256() == simulated_sha(config)


@pytest.mark.parametrize(
    "codec",
    [
        'codec.down={ kind = "feedback", of = { kind = "topk", r = 0.5 } }',
        'codec.down={ kind = "uniform", bits = 3, rounding = "stochastic" }',
        'codec.state={ kind = "feedback", of = { kind = "float8" } }',
    ],
)
def test_what_codecs_remember_and_draw_goes_on_too(codec: str) -> None:
    key, _, value = codec.partition("=")
    config = make_config("splitfed_v2", run__rounds=4, **{key.replace(".", "__"): value})
    world = restarted(config, 5, 41, crashes=3)
    assert_finished(world)
    assert world.coordinator.weights_sha256() == simulated_sha(config)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("after", [1, 5])
def test_a_server_that_dies_in_its_first_wave_keeps_everybodys_shard(preset: str, after: int) -> None:
    """Clients come back in another order, each to the data that it had; nobody goes on from what it had learned since."""
    config = make_config(preset, model__args="{ hidden = [16], batch_norm = true, dropout = 0.2 }")
    world = RestartWorld(config, after)
    for _ in range(3):
        world.join()
    while world.kept is None:
        world.run(until=1)
    world.run(until=after)
    assert world.coordinator.completed_waves == 0
    world.clients = dict(reversed(world.clients.items()))
    world.crash()
    world.run()
    assert_finished(world)
    assert {name: client.seat.shard for name, client in world.clients.items()} == {"c0": 0, "c1": 1, "c2": 2}
    assert world.coordinator.weights_sha256() == simulated_sha(config)
    assert len(batches_of(world)) == len(set(batches_of(world)))


def test_a_client_forgets_what_never_happened() -> None:
    """The newest checkpoint was damaged: the server went back beyond what the client has a snapshot of."""
    world = RestartWorld(make_config("splitfed_v1", run__rounds=4))
    for _ in range(3):
        world.join()
    kept = {}
    while world.clients["c0"].seat is None or world.clients["c0"].seat.snapshots.numbers != (1, 2):
        world.run(until=1)
        kept[world.coordinator.progress.checkpoint] = world.kept
    for number in (1, 0):
        world.kept = kept[number]
        world.crash()
        while (
            (seat := world.clients["c0"].seat) is None or seat.snapshots.last or world.coordinator.progress.wave is None
        ):
            world.run(until=1)
        assert seat.snapshots.numbers == ((1,) if number else ())
    world.run()
    assert_finished(world)
    assert world.coordinator.weights_sha256() == simulated_sha(world.config)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_lost_client_is_waited_for_under_redo(preset: str) -> None:
    """Everybody goes back to the last wave's end; the client has its snapshots from a disk; the same bits."""
    config = make_config(preset, run__rounds=3, run__on_lost='"redo"')
    for after in (23, 38, 55):
        world = RestartWorld(config, after)
        for _ in range(3):
            world.join()
        world.run(until=after)
        world.kill_client("c1")
        world.run()
        assert_finished(world)
        if world.kept and world.crashes == 0:
            assert len(batches_of(world)) == len(set(batches_of(world)))
        if not any(isinstance(f, ClientLeft) for f in world.facts):
            assert world.coordinator.weights_sha256() == simulated_sha(config)


def test_a_client_without_its_past_begins_anew() -> None:
    config = make_config("parallel", run__rounds=3)
    world = RestartWorld(config, 1)
    for _ in range(3):
        world.join()
    while world.coordinator.progress.checkpoint < 1:
        world.run(until=1)
    world.run(until=20)
    mark = len(world.said)
    world.forgetful = {"c2"}  # another process, without --state
    world.crash()
    world.run()
    assert_finished(world)
    begins = {name: m for name, m in reversed(world.said[mark:]) if isinstance(m, Begin)}  # the first of each
    assert (begins["c0"].restore, begins["c2"].restore) == (1, 0)
    assert begins["c2"].weights
    assert world.coordinator.weights_sha256() != simulated_sha(config), "its private lower is lost"


def test_those_who_do_not_come_back_are_given_up_in_the_end() -> None:
    config = make_config("splitfed_v1", run__rounds=3, run__rejoin_s=5)
    world = RestartWorld(config, 1)
    for _ in range(3):
        world.join()
    while world.coordinator.progress.checkpoint < 1:
        world.run(until=1)
    world.clients["c2"].gone = True
    world.crash()
    world.run()
    assert world.coordinator.ended is None
    assert world.turn.wake_at == 5
    world.sessions._handle("", Tick(now=4.9))
    world.run()
    assert world.coordinator.ended is None
    world.sessions._handle("", Tick(now=5.0))
    world.run()
    assert_finished(world)
    (left,) = [f for f in world.facts if isinstance(f, ClientLeft)]
    assert "run.rejoin_s = 5 s" in left.reason


def test_the_event_log_holds_a_redo() -> None:
    config = make_config("splitfed_v2", run__rounds=3, run__on_lost='"redo"')
    world = RestartWorld(config, 3)
    for _ in range(3):
        world.join()
    while world.coordinator.completed_waves < 1 or not world.coordinator.progress.wave:
        world.run(until=1)
    world.lose(world.clients["c0"])
    assert world.coordinator.stage == "redo"
    world.clients["c0"].gone = False
    world.sessions.restore(loads(world.kept[0]))
    world.come_back()
    world.run()
    assert_finished(world)
    replayed = Coordinator(config, Network.build(config))
    said = replay_events(replayed, world.events)
    assert [(n, type(m)) for n, m in said] == [(n, type(m)) for n, m in world.said]
    assert replayed.weights_sha256() == world.coordinator.weights_sha256()


def flapping(limit: int) -> RestartWorld:
    """A run whose client c1 is lost in every wave that it is in, as soon as that has begun."""
    config = make_config("splitfed_v1", run__rounds=4, run__on_lost='"redo"', run__redo_limit=limit)
    world = RestartWorld(config, 3)
    for _ in range(3):
        world.join()
    for _ in range(10_000):
        world.run(until=1)
        if world.coordinator.ended is not None:
            return world
        wave = world.coordinator.progress.wave
        if wave is not None and 1 in wave.begins and 1 not in wave.gone:
            world.kill_client("c1")
    raise AssertionError("the run stands still")


@pytest.mark.parametrize("limit", [0, 2])
def test_a_client_that_flaps_for_ever_cannot_stop_a_run_that_goes_back_for_it(limit: int) -> None:
    world = flapping(limit)
    assert sum(isinstance(event, Restored) for _, event in world.events) == limit
    assert len([f for f in world.facts if isinstance(f, RoundEnded)]) == 4
    assert world.coordinator.ended.finished
    spent = [f for f in world.facts if isinstance(f, RedoSpent)]
    assert {(f.client, f.limit) for f in spent} == {("c1", limit)}
    assert len(spent) >= 4, "it comes back and is in every round"
    assert {client for client, *_ in batches_of(world)} == {"c0", "c2"}


def test_budgets_of_rollbacks_are_the_same_when_the_events_are_replayed() -> None:
    world = flapping(2)
    replayed = Coordinator(world.config, Network.build(world.config))
    said = replay_events(replayed, world.events)
    assert [(n, type(m)) for n, m in said] == [(n, type(m)) for n, m in world.said]
    assert replayed._redo._caused == world.coordinator._redo._caused == {1: 2}
    assert replayed.weights_sha256() == world.coordinator.weights_sha256()


def test_who_gets_on_between_two_losses_is_waited_for_without_end() -> None:
    """Its failures are as many as the limit allows after each wave that it finished and that is durable, not in the whole run."""
    config = make_config("splitfed_v1", run__rounds=6, run__on_lost='"redo"', run__redo_limit=1)
    world = RestartWorld(config, 3)
    for _ in range(3):
        world.join()
    for wave in range(1, 6):
        while world.coordinator.progress.checkpoint < wave or world.coordinator.progress.wave is None:
            world.run(until=1)
        world.kill_client("c1")
    world.run()
    assert sum(isinstance(event, Restored) for _, event in world.events) == 5
    assert not [f for f in world.facts if isinstance(f, RedoSpent)]
    assert world.coordinator.weights_sha256() == simulated_sha(config)


def test_what_can_be_undone_fills_no_budget() -> None:
    budget = RedoBudget(2)
    for _ in range(2):
        assert budget.spend(0)
        budget.finished([0, 1])
        budget.went_back()
        budget.saved()
    assert not budget.spend(0)
    assert budget.spend(1), "each has a budget of its own"
    budget.finished([0])
    budget.saved()
    assert budget.spend(0)


# --- trees and files


def test_a_tree_comes_back_as_it_was() -> None:
    tree = {
        "a": [1, 2.5, None, True, "x", b"", b"bytes", (1, ("y",))],
        ("part", 3): {0: torch.arange(6).view(2, 3), "nan": float("nan")},
        "empty": torch.zeros(0, 3),
        "half": torch.ones(2, dtype=torch.bfloat16),
    }
    back = loads(dumps(tree))
    assert back["a"] == tree["a"]
    assert torch.equal(back["part", 3][0], tree["part", 3][0])
    assert back["part", 3]["nan"] != back["part", 3]["nan"]
    assert (back["empty"].shape, back["half"].dtype) == ((0, 3), torch.bfloat16)
    with pytest.raises(TypeError, match="cannot hold set"):
        dumps({"a": {1}})


def test_damaged_trees_are_told() -> None:
    data = dumps({"a": torch.arange(100)})
    for damaged in (b"", b"x", data[:-1], data[:50], MAGIC + data[:100], data[:200] + b"\x00" + data[201:] + b"!"):
        with pytest.raises(DataError):
            loads(damaged)
    for place in range(0, len(data), 37):
        broken = bytearray(data)
        broken[place] ^= 0x40
        with pytest.raises(DataError):
            loads(bytes(broken))


def test_the_newest_whole_checkpoint_is_found(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    warned: list[str] = []
    assert checkpoints.newest(warned.append) is None
    for number in (1, 2, 3):
        checkpoints.save(number, {"number": number})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-00000002.tree", "checkpoint-00000003.tree"]
    newest = tmp_path / "checkpoint-00000003.tree"
    newest.write_bytes(newest.read_bytes()[:-3])
    assert checkpoints.newest(warned.append) == {"number": 2}
    assert "going back to an older checkpoint" in warned[0]
    (tmp_path / "checkpoint-00000002.tree").write_bytes(b"")
    with pytest.raises(ConfigError, match="none of its 2 checkpoints could be read"):
        checkpoints.newest(warned.append)


def test_a_clients_snapshots_outlive_its_process(tmp_path: Path) -> None:
    warned: list[str] = []
    past = find_snapshots(tmp_path, "run", "c1", warned.append)
    for number in (1, 2, 3):
        past.keep(number, lambda n=number: {"number": n})
    past.save_after_wave(lambda: {"number": "last"})
    again = find_snapshots(tmp_path, "run", "c1", warned.append)
    assert again.numbers == (2, 3)
    assert again.last == {"number": "last"}
    assert again.state_at(2) == {"number": 2}
    again.drop_after(2)
    assert find_snapshots(tmp_path, "run", "c1", warned.append).numbers == (2,), "later ones never happened"
    assert find_snapshots(tmp_path, "run", "c2", warned.append).numbers == ()
    assert find_snapshots(tmp_path, "other", "c1", warned.append).numbers == ()
    (next(tmp_path.glob("*/snapshot-*2.tree"))).write_bytes(b"x")
    assert find_snapshots(tmp_path, "run", "c1", warned.append).numbers == ()
    assert warned
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--state"):
        find_snapshots(tmp_path / "file", "run", "c1", warned.append)


def test_going_back_to_what_is_not_there_is_an_error() -> None:
    with pytest.raises(WireError, match=r"go back to checkpoint 7, this client has \[\]"):
        Snapshots("run").state_at(7)
    world = World(make_config("parallel"))
    client = world.join()
    world.run()
    for begin in (Begin(round=0, rounds=1, restore=3), Begin(round=0, rounds=1, intact=True)):
        with pytest.raises(WireError):
            next(client.seat.wave(begin))


def test_checkpoints_are_due_after_waves_or_rounds() -> None:
    numbers = {}
    for which in ("wave", "round", "never"):
        world = RestartWorld(make_config("sequential", run__checkpoints=f'"{which}"'))
        due = []
        for _ in range(3):
            world.join()
        before = 0
        while world.coordinator.ended is None:
            world.run(until=1)
            if world.coordinator.completed_waves != before and world.coordinator.stage in ("rest", "checkpoint"):
                before = world.coordinator.completed_waves
                due.append(world.coordinator.stage == "checkpoint")
        numbers[which] = due
    assert numbers["wave"] == [True] * len(numbers["wave"])
    assert any(numbers["round"])
    assert not all(numbers["round"])
    assert not any(numbers["never"])


def test_saved_says_which_checkpoint_clients_keep_theirs_under() -> None:
    world = World(make_config("parallel", run__rounds=2))
    for _ in range(3):
        world.join()
    while world.coordinator.completed_waves < 1:
        world.run(until=1)
    world.sessions._handle("", Saved(number=1))
    world.run()
    begins = [m for name, m in world.said if name == "c0" and isinstance(m, Begin)]
    assert (begins[0].checkpoint, begins[-1].checkpoint) == (0, 1)
    assert world.clients["c0"].seat.snapshots.numbers == (1,)
