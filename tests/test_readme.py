"""README.md: short, and its commands do what it says, taken from the page as they stand."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

from processes import ran, started

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> Iterator[list[str]]:
    """Every command line of every shell block, without its comment."""
    for block in blocks("sh"):
        for line in block.splitlines():
            if words := shlex.split(line, comments=True):
                yield words


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_make_has_its_targets() -> None:
    targets = [words[1] for words in commands() if words[0] == "make"]
    assert targets == ["demo", "test"]
    for target in targets:
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True, timeout=60)


def test_its_run_runs(tmp_path: Path) -> None:
    """The TOML is written to run.toml; every sl- command follows with a free port and this machine in place of SERVER."""
    (config,) = blocks("toml")
    (tmp_path / "run.toml").write_text(config, encoding="utf-8")
    said = [words for words in commands() if words[0] in ("sl-server", "sl-client")]
    assert [words[:2] for words in said] == [
        ["sl-server", "check"],
        ["sl-server", "simulate"],
        ["sl-server", "run"],
        ["sl-client", "doctor"],
        ["sl-client", "run"],
    ]
    check, simulate, run, doctor, client = said
    for words in (check, simulate):
        assert ran(*words, cwd=tmp_path).code == 0
    with started(*(word.replace("0.0.0.0:50051", "127.0.0.1:0") for word in run), "--json", cwd=tmp_path) as server:
        address = server.event("listening")["address"]
        doctor, client = ([word.replace("SERVER:50051", address) for word in words] for words in (doctor, client))
        assert ran(*doctor, cwd=tmp_path).code == 0
        with started(*client, cwd=tmp_path) as one, started(*client, cwd=tmp_path) as other:
            assert [process.end() for process in (one, other, server)] == [0, 0, 0]
    run_directory = max((tmp_path / "runs").iterdir())  # their names end with the time; the simulation came first
    for command in ("report", "export"):
        assert ran("sl-server", command, run_directory, cwd=tmp_path).code == 0
