"""A run directory of another schema is refused before anything in it is touched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from processes import ran
from world import make_config

from sl_common.errors import ConfigError
from sl_server.storage.run_directory import RunDirectory
from sl_server.storage.run_selection import which_run
from sl_server.storage.schema import SCHEMA
from sl_server.telemetry.ledger import Ledger


def begun(folder: Path) -> Path:
    RunDirectory(folder / "run", make_config("parallel"), Ledger()).close()
    return folder / "run"


def content(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


OTHER = {
    "older": None,  # it has no run.json
    "newer": json.dumps({"schema": SCHEMA + 1, "cutlayer": "9.1"}),
    "of no number": json.dumps({"schema": "two", "cutlayer": "9.1"}),
    "damaged": "{",
    "empty": "",
    "no object": "[]",
}


@pytest.mark.parametrize("what", OTHER)
@pytest.mark.parametrize("beside", [True, False])
def test_a_run_of_another_schema_is_not_gone_on_with(what: str, tmp_path: Path, *, beside: bool) -> None:
    where = begun(tmp_path)
    text = OTHER[what]
    (where / "run.json").unlink() if text is None else (where / "run.json").write_text(text)
    before = content(where)
    config = where / "config.json" if beside else None
    with pytest.raises(ConfigError, match=r"a run of schema .* begun by .* goes on with schema 2|run\.json: "):
        which_run(config, where, None, None, record=False)
    assert content(where) == before


def test_its_keys_are_not_even_read(tmp_path: Path) -> None:
    """A configuration of another version may have keys that this one does not know: that is not the news."""
    where = begun(tmp_path)
    (where / "run.json").unlink()
    (where / "config.json").write_text('{"coding": {"seed": 3}}')
    with pytest.raises(ConfigError, match="a run of schema 1, begun by an older cutlayer; this program, cutlayer"):
        which_run(None, where, None, None, record=False)


def test_the_command_touches_nothing(tmp_path: Path) -> None:
    where = begun(tmp_path)
    (where / "run.json").unlink()
    (where / "checkpoint-00000001.tree").write_bytes(b"an older checkpoint")
    (where / "summary.json").write_text('{"failed": true}')
    before = content(where)
    done = ran("sl-server", "run", "--resume", where, "--listen", "127.0.0.1:0")
    assert done.code == 2
    assert "a run of schema 1" in done.err
    assert content(where) == before, "not even a lock is made"


def test_a_run_of_this_schema_goes_on(tmp_path: Path) -> None:
    where = begun(tmp_path)
    assert which_run(None, where, None, None, record=False)[1] == where
    assert json.loads((where / "run.json").read_text())["schema"] == SCHEMA
