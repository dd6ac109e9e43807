"""Frames that were committed are said again, byte for byte; what departs is named by its frame and field."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from golden_frames import (
    CODECS,
    FOLDER,
    RECORDED,
    Recorder,
    departures,
    exact_config,
    known,
    simulated,
    write,
)

from sl_common.proto import split_pb2 as pb


@pytest.mark.parametrize("name", RECORDED)
def test_what_goes_over_the_wire_is_what_was_committed(name: str) -> None:
    """A change that is meant: `python tests/golden_frames.py`, and the commit says why."""
    assert departures(known(name), RECORDED[name]()) == []


def test_there_is_a_file_for_each_recording_and_no_other() -> None:
    assert {path.name.partition(".")[0] for path in FOLDER.iterdir()} == set(RECORDED)


def test_every_kind_of_frame_is_among_them() -> None:
    there = {key for name in RECORDED for line in known(name).lines for key in line}
    kinds = {f.name for frame in (pb.ClientFrame, pb.ServerFrame) for f in frame.DESCRIPTOR.fields}
    assert kinds - there == set()


@pytest.mark.parametrize(("preset", "rest"), [("parallel", {}), ("splitfed_v1", {"eval__every": 1})])
def test_no_number_depends_on_the_order_of_summing(preset: str, rest: dict[str, object]) -> None:
    """So another processor says the same bytes."""
    link = CODECS if rest else None
    forwards, backwards = (
        simulated(exact_config(preset, link, model__args=f"{{ backwards = {way} }}", **rest))[0].lines
        for way in ("false", "true")
    )
    assert backwards == forwards


def changed(change: Callable[[Recorder], object]) -> list[str]:
    before, now = known("codecs"), known("codecs")
    change(now)
    return departures(before, now)


def frame(recorder: Recorder, kind: str) -> dict:
    return next(line for line in recorder.lines if kind in line)


def test_a_departure_is_named_by_frame_and_field() -> None:
    assert changed(lambda now: frame(now, "smashed")["smashed"]["z"].update(nbytes=1)) == [
        "frame 7 (c0 → server): smashed.z.nbytes was 27, is 1"
    ]
    assert changed(lambda now: frame(now, "gradient").update(chunk="00"))[0].startswith("frame 9 (c0 ← server): chunk")
    assert changed(lambda now: frame(now, "ready").update(frame="00"))[0].startswith("frame 3 (c0 → server): frame was")
    assert changed(lambda now: frame(now, "done")["done"].update(extra=1)) == [
        "frame 11 (c0 → server): done.extra was 'nothing', is 1"
    ]
    assert changed(lambda now: now.lines.pop())[0].startswith("frame 38: fewer than were known")


def test_the_configuration_may_grow_and_must_not_change() -> None:
    assert changed(lambda now: now.config["run"].update(new=1)) == []
    assert changed(lambda now: now.config.update(new={})) == []
    assert changed(lambda now: now.config["run"].update(rounds=3)) == ["configuration: run.rounds was 2, is 3"]
    assert changed(lambda now: now.config["run"].pop("rounds")) == ["configuration: run.rounds was 2, is 'nothing'"]


def test_the_files_are_as_the_script_leaves_them(tmp_path: Path) -> None:
    write("messages", tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        path.name: path.read_text() for path in FOLDER.glob("messages.*")
    }
