"""A run's directory on a disk that fills up: the training goes on, and what is lost is said."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SL_SERVER = Path(sys.executable).with_name("sl-server")
CONFIG = """
[run]
rounds = 2
clients = 2
[model]
name = "mlp"
[protocol]
preset = "splitfed_v1"
"""
FULL_DISK = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
os.execv(sys.argv[2], sys.argv[2:])
"""


def simulate(tmp_path: Path, limit: int | None) -> subprocess.CompletedProcess[str]:
    """`sl-server simulate` by a process that may write files of so many bytes at most, as on a disk that is full."""

    config = tmp_path / "run.toml"
    config.write_text(CONFIG)
    command = [SL_SERVER, "simulate", config, "--out", tmp_path / "out", "--json"]
    if limit:
        command = [sys.executable, "-c", FULL_DISK, str(limit), *command]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_a_full_disk_costs_what_could_not_be_written_not_the_training(tmp_path: Path) -> None:
    (tmp_path / "good").mkdir()
    (tmp_path / "full").mkdir()
    good, full = simulate(tmp_path / "good", None), simulate(tmp_path / "full", 4000)
    assert good.returncode == 0
    assert full.returncode == 1
    events = [[json.loads(line) for line in run.stdout.splitlines()] for run in (good, full)]
    warnings = [event for event in events[1] if event["event"] == "warning"]
    assert len(warnings) == 1, "said once, not for every line"
    assert "training goes on" in warnings[0]["text"]
    assert "could not be written" in events[1][-1]["text"]
    sums = [next(e["weights_sha256"] for e in run if e["event"] == "summary") for run in events]
    assert sums[0] == sums[1]
    assert not list((tmp_path / "full").glob("out/*.safetensors")), "no half-written weights"


def test_a_directory_that_holds_a_run_is_not_overwritten(tmp_path: Path) -> None:
    assert simulate(tmp_path, None).returncode == 0
    before = (tmp_path / "out" / "metrics.jsonl").read_bytes()
    again = simulate(tmp_path, None)
    assert again.returncode == 2
    assert "holds a run already" in again.stdout
    assert (tmp_path / "out" / "metrics.jsonl").read_bytes() == before
