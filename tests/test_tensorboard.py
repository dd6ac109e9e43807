"""`--tensorboard`: what TensorBoard reads is what `metrics.csv` says."""

from __future__ import annotations

import csv
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_cli import SMALL
from world import make_config

from sl_common.host.extras import how_to_install
from sl_common.messages.facts import RoundEnded, WaveBegun
from sl_server.storage.run_directory import RunDirectory
from sl_server.storage.table import COLUMNS
from sl_server.storage.tensorboard import TensorBoard, tag_of
from sl_server.telemetry.ledger import Ledger

SL_SERVER = Path(sys.executable).with_name("sl-server")


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """tag -> round -> value, as TensorBoard itself reads them."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def test_every_column_is_a_scalar_of_its_round(tmp_path: Path) -> None:
    config, out = tmp_path / "run.toml", tmp_path / "out"
    config.write_text(SMALL)
    command = [SL_SERVER, "simulate", config, "--out", out, "--tensorboard", "--set", "eval.every=1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found, rows = scalars(out), list(csv.DictReader((out / "metrics.csv").read_text().splitlines()))
    assert {
        "loss/train",
        "loss/held out",
        "accuracy/held out",
        "bytes up/smashed",
        "bytes down/payload",
        "run/seconds",
    } <= found.keys()
    for column in COLUMNS[1:]:
        told = {int(row["round"]): float(row[column]) for row in rows if row[column]}
        assert found.get(tag_of(column), {}) == pytest.approx(told, rel=1e-6)


def test_rounds_that_are_done_again_count_once(tmp_path: Path) -> None:
    """A run that goes back, and one that is resumed by another process."""
    config, begun = (
        make_config("parallel"),
        WaveBegun(round=1, rounds=3, wave=0, clients=("c0",), steps=1, evaluate=False),
    )

    def train(directory: RunDirectory, number: int, loss: float) -> None:
        directory.fact(RoundEnded(round=number, loss=loss, samples=1, clients=1), 1.0)
        directory.fact(begun, 1.0)

    first = RunDirectory(tmp_path, config, Ledger(), board=TensorBoard(tmp_path))
    train(first, 0, 1.0)
    kept = first.written()
    train(first, 1, 2.0)
    first.cut_back(kept)
    train(first, 1, 3.0)
    train(first, 2, 4.0)
    first.close()
    again = RunDirectory(tmp_path, config, Ledger(), kept, TensorBoard(tmp_path))
    train(again, 1, 5.0)
    again.close()
    assert scalars(tmp_path)["loss/train"] == {1: 1.0, 2: 5.0}


def test_without_the_package_it_says_what_to_install(tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text(SMALL)
    blocked = "import sys; sys.modules['tensorboard'] = None; from sl_server.cli.application import main; main()"
    command = [sys.executable, "-c", blocked, "simulate", config, "--out", tmp_path / "out", "--tensorboard"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "--tensorboard needs the package tensorboard" in done.stderr
    assert how_to_install("tensorboard") in done.stderr
    assert not (tmp_path / "out").exists(), "and leaves its place free"


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)  # of the package's own thread, which dies
def test_rounds_that_a_full_disk_kept_from_the_board_come_later(tmp_path: Path) -> None:
    config = make_config("parallel")
    begun = WaveBegun(round=1, rounds=9, wave=0, clients=("c0",), steps=1, evaluate=False)
    directory = RunDirectory(tmp_path, config, Ledger(), board=TensorBoard(tmp_path))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    failed = 0
    for number in range(6):
        if number == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (600, hard))
        if number == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        for fact in (RoundEnded(round=number, loss=float(number), samples=1, clients=1), begun):
            try:
                directory.fact(fact, 1.0)
            except OSError:
                failed += 1
    assert failed
    directory.written()
    directory.close()
    assert scalars(tmp_path)["loss/train"] == {number + 1: float(number) for number in range(6)}
