"""constraints-hashed.txt: each package of our own runs with its file's hash, at the versions of constraints.txt."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
LINE = re.compile(r"([A-Za-z0-9._-]+)==([0-9][^ ]*) --hash=sha256:[0-9a-f]{64}")


def rows(name: str) -> list[str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_every_version_that_we_pin_has_a_hash() -> None:
    found = [LINE.fullmatch(row) for row in rows("constraints-hashed.txt")]
    assert all(found)
    locked = {m[1].lower().replace("_", "-"): m[2].partition("+")[0] for m in found if m}
    pinned = dict(row.lower().split("==") for row in rows("constraints.txt"))
    assert len(pinned) > 20
    assert {name: locked.get(name) for name in pinned} == pinned
