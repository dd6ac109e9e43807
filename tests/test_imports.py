"""Every module can be the first one that is imported: no cycle hides behind a lucky order."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
SCRIPT = """
import importlib, sys
import torch, grpc, pydantic, typer, rich  # slow ones once
for name in sys.argv[1:]:
    for loaded in [m for m in sys.modules if m.split(".")[0] in ("sl_common", "sl_server", "sl_client") and ".proto." not in m]:
        del sys.modules[loaded]
    try:
        importlib.import_module(name)
    except Exception as error:
        sys.exit(f"{name}: {error!r}")
"""


def test_every_module_can_be_imported_first() -> None:
    paths = [
        p.relative_to(ROOT)
        for package in ("sl_common", "sl_server", "sl_client")
        for p in (ROOT / package).rglob("*.py")
    ]
    modules = [".".join(p.with_suffix("").parts).removesuffix(".__init__") for p in paths if "proto" not in p.parts]
    assert len(modules) > 50
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *modules], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
