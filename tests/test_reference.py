"""docs/reference is what the code says, and the table of a run's files names every file of a real run."""

from __future__ import annotations

import fnmatch
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from small_run import SMALL

from sl_common.config.run_config import RunConfig
from sl_server.storage.contents import FILES

ROOT = Path(__file__).parent.parent
PAGES = runpy.run_path(str(ROOT / "docs" / "generate.py"))["pages"]()


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_what_the_code_says(name: str) -> None:
    assert (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8") == PAGES[name], "make reference"


def test_nothing_else_lies_beside_them() -> None:
    assert {path.name for path in (ROOT / "docs" / "reference").iterdir()} == PAGES.keys()


def test_every_key_of_a_configuration_is_on_the_page() -> None:
    """Every leaf of the defaults, as `sl-server check` prints them."""

    def keys(table: dict[str, object], prefix: str = "") -> list[str]:
        found = []
        for name, value in table.items():
            if isinstance(value, dict) and "kind" not in value and value:
                found += keys(value, f"{prefix}{name}.")
            else:
                found.append(f"{prefix}{name}")
        return found

    page = PAGES["configuration.md"]
    missing = [key for key in keys(RunConfig().model_dump(mode="json")) if f"`{key}`" not in page]
    assert missing == ["preset"]  # written as [protocol] preset, which the page of presets is about


def test_every_key_has_a_sentence() -> None:
    assert re.findall(r"^\| `[^|]*\|[^|]*\|[^|]*\|  \|$", PAGES["configuration.md"], re.MULTILINE) == []


def test_the_schema_is_json_schema() -> None:
    schema = json.loads(PAGES["run.schema.json"])
    assert schema["properties"].keys() == RunConfig.model_fields.keys()


def test_the_table_names_every_file_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(SMALL, encoding="utf-8")
    command = [Path(sys.executable).with_name("sl-server"), "simulate", "run.toml", "--out", "out"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=200)
    patterns = [
        pattern.replace("SHARD", "*").replace("NUMBER", "*") for names in FILES for pattern in names.split(", ")
    ]
    found = [path.name for path in (tmp_path / "out").iterdir()]
    assert len(found) > 6
    assert [name for name in found if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns)] == []
