"""Places and sizes that people name: paths that nobody can follow, a folder that is gone, shards and memory in odd digits."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from processes import BIN, PATIENCE_S, _environment, ran
from small_run import SMALL

from sl_client.cli.options import check_place, shard_of
from sl_client.device.limits import parse_size
from sl_common.config.run_config import RunConfig
from sl_common.errors import ConfigError
from sl_server.storage.export import export_run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a configuration."""
    (tmp_path / "run.toml").write_text(SMALL, encoding="utf-8")
    return tmp_path


def test_a_working_directory_that_is_gone_ends_no_command(tmp_path: Path) -> None:
    line = f"mkdir gone && cd gone && rmdir ../gone && exec {BIN}/sl-server --version"
    done = subprocess.run(
        ["/bin/sh", "-c", line],
        cwd=tmp_path,
        env=_environment(None),
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")


LONG = "x" * 300


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("sl-server", "simulate", "run.toml", "--out", LONG), 2),
        (("sl-server", "simulate", "run.toml", "--set", f"run.name={LONG}"), 2),
        (("sl-server", "run", "--resume", LONG), 2),
        (("sl-server", "report", LONG), 2),
        (("sl-server", "export", LONG), 2),
        (("sl-server", "replay", LONG), 1),
        (("sl-server", "check", LONG), 2),
        (("sl-server", "certs", LONG), 2),
        (("sl-client", "predict", LONG), 2),
        (("sl-client", "run", "--save-lower", LONG), 2),
        (("sl-client", "digest", "cifar10", "--data", LONG), 1),
        (("sl-client", "digest", "fashion-mnist", "--data", LONG), 1),
    ],
    ids=lambda words: "-".join(words[:2]) if isinstance(words, tuple) else "",
)
def test_a_name_that_is_too_long_is_said_in_words(words: tuple[str, ...], code: int, folder: Path) -> None:
    process = ran(*words, cwd=folder)
    assert "Traceback" not in "\n".join([*process.lines, *process._errors])
    assert process.code == code, process.err
    assert "File name too long" in process.err


def test_a_lower_segments_file_is_looked_at_before_the_run(tmp_path: Path) -> None:
    check_place(tmp_path / "lower.safetensors")
    with pytest.raises(ConfigError, match="is a folder"):
        check_place(tmp_path)
    with pytest.raises(ConfigError, match="there is no folder"):
        check_place(tmp_path / "nowhere" / "x")
    if os.geteuid() != 0:
        tmp_path.chmod(0o500)
        with pytest.raises(ConfigError, match="nothing can be written"):
            check_place(tmp_path / "x")


@pytest.mark.parametrize(
    "text", ["²/3", "1/³", "0/3", "4/3", "1", "/", "1/", "9" * 5000 + "/" + "9" * 5000, "-1/2", ""]
)
def test_what_is_no_shard_is_said(text: str) -> None:
    with pytest.raises(ConfigError, match="--shard"):
        shard_of(text)


def test_shards_in_digits_are_understood() -> None:
    assert shard_of(" 2/4 ") == (1, 4)


@pytest.mark.parametrize("text", ["9" * 400, "9" * 400 + "T", "0", "0.5", "٣G", "1e9", "", "-1"])
def test_what_is_no_size_is_said(text: str) -> None:
    with pytest.raises(ConfigError, match="--max-memory"):
        parse_size(text)


def test_links_in_a_circle_are_said(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(RunConfig.from_toml(SMALL).to_json(), encoding="utf-8")
    (tmp_path / "head.safetensors").symlink_to("head.safetensors")
    (tmp_path / "lower.safetensors").symlink_to("lower.safetensors")
    with pytest.raises(ConfigError, match=r"lower.safetensors: no lower here"):
        export_run(tmp_path)
