"""What survives a loss of power or a full disk: files that a checkpoint counts on are durable before it, or an older one is taken."""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path

import pytest
from crashes import copied, every_crash
from federation import federation, sha_of, slow_config
from processes import ran, started
from tally import Faults
from world import make_config

from sl_client.training.snapshots_on_disk import StateFolders, find_snapshots
from sl_common.errors import ConfigError, DataError
from sl_common.messages.facts import RoundEnded, Trained
from sl_common.tensors import state_digest
from sl_common.training.segment import Tree
from sl_common.tree import loads
from sl_server.simulation.simulation import Simulation
from sl_server.storage.checkpoint import Checkpoints
from sl_server.storage.run_directory import GROWING, RunDirectory, shorter
from sl_server.storage.weight_set import read_weights_of
from sl_server.telemetry.ledger import Ledger


def batch(number: int) -> Trained:
    return Trained(client="c0", shard=0, round=0, wave=0, step=number, samples=1, loss=1.0, crc32=f"{number:08x}")


def wave(directory: RunDirectory, checkpoints: Checkpoints, number: int) -> None:
    """A round of three batches, and its checkpoint."""
    for step in range(3):
        directory.fact(batch(3 * number + step), 0.0)
    directory.fact(RoundEnded(round=number, loss=1.0, samples=3, clients=1), 1.0)
    checkpoints.save(number, {"files": directory.written(), "number": number})


def test_every_checkpoint_that_a_crash_leaves_fits_the_other_files(tmp_path: Path) -> None:
    """At each write, fsync and rename of a wave and its checkpoint: the newest one counts on no byte that is not durable."""
    config, ledger = make_config("parallel"), Ledger()
    before, out = tmp_path / "before", tmp_path / "run"
    first = RunDirectory(before, config, ledger)
    wave(first, Checkpoints(before), 1)
    first.close()
    kept = loads((before / "checkpoint-00000001.tree").read_bytes())["files"]
    opened: list[RunDirectory] = []

    def begin_again() -> None:
        copied(before, out)
        opened.append(RunDirectory(out, config, ledger, kept))

    found = []
    for _ in every_crash(lambda: wave(opened[-1], Checkpoints(out), 2), begin_again):
        warned: list[str] = []
        tree = Checkpoints(out).newest(warned.append, lambda tree: shorter(out, tree["files"]))
        assert tree is not None
        assert not warned
        again = RunDirectory(out, config, ledger, tree["files"])
        again.close()
        lines = (out / "digests.log").read_text().splitlines()
        assert lines == [f"c0 1 1 {step} {step:08x}" for step in range(3, 3 * (tree["number"] + 1))]
        assert b"\0" not in b"".join((out / name).read_bytes() for name in GROWING)
        assert not list(out.glob(".*.part"))
        found.append(tree["number"])
    assert sorted(found) == found
    assert set(found) == {1, 2}


def test_a_summary_is_there_when_all_else_is(tmp_path: Path) -> None:
    """At each step of a run's end: without a summary the directory holds one set of weights or none, with it all that it tells of."""
    config, ledger = make_config("splitfed_v2", run__rounds=1), Ledger()
    simulation = Simulation(config, count=ledger.count)
    before, out = tmp_path / "before", tmp_path / "run"
    directory = RunDirectory(before, config, ledger)
    for fact in simulation.facts():
        directory.fact(fact, 0.0)
    kept = directory.written()
    directory.close()
    final = {part: state_digest(state) for part, state in simulation.coordinator.weights().items()}
    opened: list[RunDirectory] = []

    def begin_again() -> None:
        copied(before, out)
        opened.append(RunDirectory(out, config, ledger, kept))

    over = []
    for _ in every_crash(lambda: opened[-1].finish(simulation.coordinator, 0.0), begin_again):
        over.append((out / "summary.json").exists())
        found = {part: state_digest(state) for part, state in read_weights_of(out).items()}
        assert found == final or (not found and not over[-1])
        assert all((out / name).stat().st_size == length for name, length in kept.items())
    assert over == sorted(over)
    assert not over[0]


def test_a_checkpoint_whose_files_lost_their_end_is_passed_over_aloud(tmp_path: Path, faults: Faults) -> None:
    """As a disk without barriers leaves them: the run goes on from the older one, to the same bits; with neither it says so."""
    config = slow_config("splitfed_v1")
    with federation(config, tmp_path, faults) as run:
        run.wait_for(3)
        run.kill_server()
        newest = sorted(run.out.glob("checkpoint-*.tree"))[-1]
        log = run.out / "digests.log"
        length = loads(newest.read_bytes())["files"]["digests.log"]
        log.write_bytes(log.read_bytes()[: length - 7])
        run.resume()
        warning = run.server.event("warning")["text"]
        assert (
            f"{newest}: it counts on {length} bytes of digests.log, which has {length - 7}; going back to an older"
            in warning
        )
        assert run.server.event("resumed")["checkpoint"] == int(newest.stem[-8:]) - 1
        assert run.summary()["weights_sha256"] == sha_of(config)
    assert len(run.trained()) == len(set(run.trained())) == 6 * 2 * 30


def test_without_a_checkpoint_that_fits_nothing_is_touched(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path, make_config("parallel"), Ledger())
    for number in (1, 2):
        wave(directory, Checkpoints(tmp_path), number)
    directory.close()
    (tmp_path / "metrics.jsonl").write_bytes(b"")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    done = ran("sl-server", "run", "--resume", tmp_path, "--listen", "127.0.0.1:0")
    assert done.code == 2
    assert "none of its 2 checkpoints could be read and gone on from: it counts on" in done.err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != ".lock"} == before


def too_new(tree: Tree) -> None:
    if tree["number"] == 2:
        raise DataError("too new")


def test_checkpoints_that_were_passed_over_never_come_back(tmp_path: Path) -> None:
    """Else the files would be long enough for them later, with other bytes."""
    checkpoints = Checkpoints(tmp_path)
    for number in (1, 2):
        checkpoints.save(number, {"number": number})
    again = Checkpoints(tmp_path)
    assert again.newest(lambda _text: None, too_new) == {"number": 1}
    assert len(list(tmp_path.iterdir())) == 2, "not before the run goes on"
    again.forget_newer()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-00000001.tree"]


def test_a_disk_that_is_full_for_a_while_costs_no_line(tmp_path: Path) -> None:
    """Rounds go by while no file can grow; then every line is there, once, and two lines of text have told of it."""
    config = slow_config("splitfed_v2", run__rounds=40, run__clients=1, eval__every=20)
    path, out = tmp_path / "config.json", tmp_path / "run"
    path.write_text(config.to_json())
    with started("sl-server", "simulate", path, "--out", out, "--json") as run:
        run.event("round", round=3)
        whole = resource.prlimit(run._process.pid, resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
        run.event("warning")
        run.event("round", round=15)
        resource.prlimit(run._process.pid, resource.RLIMIT_FSIZE, whole)
        assert run.end() == 0, run.err
        told = [event["text"] for event in run.events if event["event"] in ("warning", "written")]
    assert len(told) == 2
    assert "kept in memory" in told[0]
    assert "can be written again" in told[1]
    lines = (out / "digests.log").read_text().splitlines()
    assert [line.split()[1:4] for line in lines] == [[str(r), "1", str(s)] for r in range(1, 41) for s in range(30)]
    events = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [event["round"] for event in events if event["event"] == "round"] == list(range(1, 41))
    rows = (out / "metrics.csv").read_text().splitlines()
    assert [row.partition(",")[0] for row in rows] == ["round", *map(str, range(1, 41))]
    assert "lost_lines" not in json.loads((out / "summary.json").read_text())


def test_what_was_lost_in_the_end_is_in_the_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sl_server.storage.append_only.MAX_WAITING_FILE", 200)
    directory = RunDirectory(tmp_path, make_config("parallel"), Ledger())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        for step in range(50):
            directory.fact(batch(step), 0.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    directory.written()
    kept = len((tmp_path / "digests.log").read_text().splitlines())
    assert {"digests.log": 50 - kept} == {name: file.lost for name, file in directory._files.items() if file.lost}
    directory.close()


# --- a client's snapshots


def limited(nbytes: int) -> None:
    """So long may files of this process be."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def test_a_snapshot_that_could_not_be_written_takes_those_that_hang_on_it_along(tmp_path: Path) -> None:
    """A stale state after the last wave would be taken for the one that the server's checkpoint means."""
    warned: list[str] = []
    past = find_snapshots(tmp_path, "run", "c1", warned.append)
    past.keep(1, lambda: {"number": 1})
    past.save_after_wave(lambda: {"number": "after 1"})
    try:
        limited(10)
        past.keep(2, lambda: {"number": 2})
    finally:
        limited(resource.RLIM_INFINITY)
    past.save_after_wave(lambda: {"number": "after 2"})
    assert len(warned) == 1
    again = find_snapshots(tmp_path, "run", "c1", warned.append)
    assert (again.numbers, again.last) == ((1,), None)
    past.keep(3, lambda: {"number": 3})
    past.save_after_wave(lambda: {"number": "after 3"})
    try:
        limited(10)
        past.save_after_wave(lambda: {"number": "after 4"})
    finally:
        limited(resource.RLIM_INFINITY)
    again = find_snapshots(tmp_path, "run", "c1", warned.append)
    assert (again.numbers, again.last) == ((3,), None)


def test_a_client_killed_at_any_step_of_its_snapshots_has_whole_ones(tmp_path: Path) -> None:
    def act() -> None:
        past = find_snapshots(tmp_path, "run", "c1", lambda _text: None)
        for number in (1, 2, 3):
            past.keep(number, lambda n=number: {"number": n})
            past.save_after_wave(lambda n=number: {"number": f"after {n}"})

    def begin_again() -> None:
        for path in tmp_path.glob("*/*"):
            path.unlink()

    act()  # the folder is there from now on
    for _ in every_crash(act, begin_again):
        warned: list[str] = []
        found = find_snapshots(tmp_path, "run", "c1", warned.append)
        assert not warned
        assert all(found.state_at(number) == {"number": number} for number in found.numbers)
        newest = max(found.numbers, default=0)
        assert found.last in (None, {"number": f"after {newest}"}, {"number": f"after {newest - 1}"})


def test_the_state_of_a_run_that_is_over_is_removed(tmp_path: Path) -> None:
    """That of a run that was cut short, and of others, stays."""
    (tmp_path / "config.json").write_text(slow_config("parallel", run__rounds=2, run__clients=1).to_json())
    state = tmp_path / "state"
    past = StateFolders(state)
    past.find("another run", "c0", lambda _text: None).save_after_wave(lambda: {"number": 1})
    past.close()
    (other,) = state.iterdir()
    for number, stop in enumerate((True, False)):
        with started(
            "sl-server",
            "run",
            tmp_path / "config.json",
            "--out",
            tmp_path / f"run{number}",
            "--listen",
            "127.0.0.1:0",
            "--json",
        ) as server:
            client = (
                "sl-client",
                "run",
                "--server",
                server.event("listening")["address"],
                "--state",
                state,
                "--id",
                "c0",
            )
            with started(*client) as first:
                if stop:
                    while not list(state.glob("*/snapshot-*.tree"))[1:]:
                        time.sleep(0.01)
                    server.signal(2)
                assert first.end() == (1 if stop else 0)
            server.end()
        kept = {path for path in state.iterdir() if list(path.glob("snapshot-*.tree"))}
        assert other in kept
        assert len(kept) == 2
    assert {path.parent for path in state.glob("*/*")} <= kept


def test_a_state_that_is_no_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--state .*file"):
        StateFolders(tmp_path / "file").find("run", "c1", lambda _text: None)
