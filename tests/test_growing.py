"""Files that only grow: nothing twice, nothing lost while the disk is full, nothing longer than it was written."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from crashes import Killed, steps
from test_faults import simulated_sha
from world import World, make_config

from sl_common.config.run_config import RunConfig
from sl_server.simulation.replay import replay_log
from sl_server.storage import append_only as growing
from sl_server.storage.append_only import GrowingFile
from sl_server.storage.eventlog import EventLog

LINES = [f"c{number % 3} 0 0 {number} {number:08x}\n" for number in range(3600)]


@contextmanager
def full_disk(nbytes: int) -> Iterator[None]:
    """No file of this process can be longer, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_a_full_disk_did_not_take_is_written_when_it_does(tmp_path: Path) -> None:
    """Also the rest of a line that was written in part."""
    file = GrowingFile(tmp_path / "log")
    for number, line in enumerate(LINES):
        if number == 600:
            file.flush()
        if number == 601:
            with full_disk(file.length + 5):  # in the middle of the line
                for during in LINES[601:2400]:
                    file.write(during)
                with pytest.raises(OSError, match="too large"):
                    file.flush()
                with pytest.raises(OSError, match="too large"):
                    file.sync()
        if not 601 <= number < 2400:
            file.write(line)
    file.close()
    assert file.lost == 0
    assert (tmp_path / "log").read_text() == "".join(LINES)


def test_what_waits_is_bounded_and_what_is_lost_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing, "MAX_WAITING_FILE", 1000)
    file = GrowingFile(tmp_path / "log")
    with full_disk(0):
        for line in LINES:
            file.write(line)
        kept = file.waiting
        assert 900 < kept <= 1000
    file.write("after\n")
    file.close()
    text = (tmp_path / "log").read_text()
    assert text == "".join(LINES)[:kept] + "after\n", "whole lines, in order"
    assert file.lost == len(LINES) - text.count("\n") + 1


def test_a_file_is_cut_back_and_never_made_longer(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"0123456789")
    with pytest.raises(ValueError, match="has 10 bytes, expected at least 11"):
        GrowingFile(path, 11)
    assert path.read_bytes() == b"0123456789"
    file = GrowingFile(path, 8)
    file.write("ab\ncd")
    assert (file.length, file.lines()) == (13, 1)
    file.cut_back(9)
    file.write("e")
    with pytest.raises(ValueError, match="has 10 bytes, cannot be cut back to 11"):
        file.cut_back(11)
    assert file.sync() == 10
    file.cut_back(4)
    file.close()
    assert path.read_bytes() == b"0123"


def test_only_new_bytes_are_made_durable(tmp_path: Path) -> None:
    file = GrowingFile(tmp_path / "log")
    for written, wanted in (("a", 2), ("", 0), ("b", 2)):  # a pwrite and an fsync
        file.write(written)
        with steps() as counted:
            file.sync()
        assert counted.taken == wanted


def test_a_record_is_whole_in_memory_or_on_disk_at_any_crash(tmp_path: Path) -> None:
    file = GrowingFile(tmp_path / "log")
    file.write("a\n")
    with steps(0), pytest.raises(Killed):
        file.sync()
    assert (tmp_path / "log").read_bytes() == b""


def logged(folder: Path, config: RunConfig, full_after: int) -> tuple[World, EventLog, list[str]]:
    """A run whose events are recorded on a disk that takes so many bytes until it is over."""
    said: list[str] = []
    world = World(config)
    log = EventLog(folder / "events.log", config, said.append)
    world.sessions.log = log
    for _ in range(3):
        world.join()
    with full_disk(full_after):
        world.run()
    return world, log, said


def test_an_event_log_outlives_a_full_disk(tmp_path: Path) -> None:
    config = make_config("splitfed_v1")
    _, log, said = logged(tmp_path, config, 10_000)
    log.close()
    assert log.complete
    assert not said
    assert replay_log(tmp_path / "events.log").coordinator.weights_sha256() == simulated_sha(config)


def test_an_event_log_ends_before_a_gap_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing, "MAX_WAITING_FILE", 20_000)
    world, log, said = logged(tmp_path, make_config("splitfed_v1"), 10_000)
    log.close()
    assert world.coordinator.ended is not None
    assert world.coordinator.ended.finished, "the run goes on"
    assert not log.complete
    assert len(said) == 1
    assert "events.log ends here" in said[0]
    assert replay_log(tmp_path / "events.log").coordinator.ended is None


def test_an_event_log_says_how_large_it_has_grown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sl_server.storage.eventlog.GROWN", 50_000)
    _, log, said = logged(tmp_path, make_config("splitfed_v1"), resource.RLIM_INFINITY)
    assert len(said) == log._file.length // 50_000 > 1
    assert all("--record keeps every activation" in text for text in said)
