"""`make sbom` lists what we depend on, with versions."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_bill_of_materials_lists_every_dependency() -> None:
    """The tools are installed by pip into a folder of their own, once."""
    words = ["make", "sbom", f"PYTHON={sys.executable}", f"BIN={Path(sys.executable).parent}"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=390)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((ROOT / "build/sbom.json").read_text())
    assert found["bomFormat"] == "CycloneDX"
    listed = {one["name"].lower().replace("_", "-"): one["version"] for one in found["components"]}
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {re.match(r"[A-Za-z0-9_.-]+", one)[0].lower() for one in needed}  # type: ignore[index]
    assert len(names) > 5
    assert {name: listed[name] for name in names} == {name: version(name) for name in names}
