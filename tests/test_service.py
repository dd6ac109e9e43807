"""The systemd unit: systemd itself takes it, it lets little happen, and every option it sets is one of the client's."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from sl_client.cli.application import app
from sl_common.exits import INTERRUPTED

UNITS = Path(__file__).parent.parent / "deploy" / "systemd"
EXPOSURE = 20  # of 100; systemd calls anything below 40 OK, a unit without options has 96


def lines(name: str) -> list[tuple[str, str]]:
    """Keys and values, comments left out."""
    text = [line for line in (UNITS / name).read_text().splitlines() if line and line[0] not in "#["]
    return [(key, value) for key, _, value in (line.partition("=") for line in text)]


def installed(tmp_path: Path) -> Path:
    """The unit with its drop-in, as on a device, where the client is a program that is here."""
    unit = tmp_path / "sl-client.service"
    unit.write_text(
        re.sub(r"^ExecStart=\S+", f"ExecStart={sys.executable}", (UNITS / unit.name).read_text(), flags=re.M)
    )
    (tmp_path / "sl-client.service.d").mkdir()
    shutil.copy(UNITS / "tls.conf", tmp_path / "sl-client.service.d")
    return unit


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_systemd_takes_it_without_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", installed(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, [line for line in done.stderr.splitlines() if "sl-client" in line]) == (0, []), done.stderr


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_it_lets_little_happen(tmp_path: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE}", "--no-pager", installed(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout[-500:] + done.stderr


def test_it_sets_options_that_the_client_has() -> None:
    command = typer.main.get_command(app).commands["run"]
    known = {option.envvar for option in command.params}
    commented = re.findall(r"^#?(SL_\w+)=", (UNITS / "client.env").read_text(), flags=re.M)
    set_by = [word for name in ("sl-client.service", "tls.conf") for _, value in lines(name) for word in re.findall(r"\b(SL_\w+)=", value)]  # fmt: skip
    assert {"SL_SERVER", "SL_STATE", "SL_TOKEN", "SL_THREADS", "SL_MAX_MEMORY"} <= {*commented, *set_by} <= known


def test_it_starts_again_only_where_that_may_help() -> None:
    found = dict(lines("sl-client.service"))
    assert found["Restart"] == "on-failure"
    assert found["RestartPreventExitStatus"].split() == ["2", "3"]
    assert found["SuccessExitStatus"] == str(INTERRUPTED)
