"""Commands that install the packages of an optional feature into this environment.

No package index has this project, so its extras are named with the folder that it was installed from.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import sys
import sysconfig
from importlib.metadata import distribution, distributions
from pathlib import Path
from urllib.parse import unquote, urlsplit

DISTRIBUTION = "cutlayer"


def how_to_install(extra: str) -> str:
    """Return the command that installs an extra of pyproject.toml; in a read-only image, a line for a Dockerfile."""
    command = _pip() + _requirements(extra)
    line = shlex.join(command)
    if os.access(sysconfig.get_path("purelib"), os.W_OK):
        return line
    return f"in an image made FROM this one: USER root, then RUN {line}" if _in_a_container() else f"sudo {line}"


def _pip() -> list[str]:
    """Return the command of this environment's pip, or of any pip if the environment has none."""
    if importlib.util.find_spec("pip") is None:
        return ["pip", "--python", sys.executable, "install"]
    return [sys.executable, "-m", "pip", "install"]


def _requirements(extra: str) -> list[str]:
    """Return the checkout that this was installed from with the extra; without a checkout, the extra's packages."""
    folder, editable = _checkout()
    if folder is not None:
        return [*(["-e"] if editable else []), f"{folder}[{extra}]"]
    return _packages(extra)


def _checkout() -> tuple[Path | None, bool]:
    try:
        # A clone holds metadata of its own, without this file.
        texts = (one.read_text("direct_url.json") for one in distributions(name=DISTRIBUTION))
        url = json.loads(next((text for text in texts if text), "{}"))
        folder = Path(unquote(urlsplit(url["url"]).path))
        editable = bool(url["dir_info"].get("editable"))
    except (ValueError, KeyError, OSError):
        return None, False
    return (folder, editable) if (folder / "pyproject.toml").is_file() else (None, False)


def _packages(extra: str) -> list[str]:
    """Return an extra's packages from the installed metadata, as in `pillow>=10; extra == "images"`."""
    found = [line.partition(";") for line in distribution(DISTRIBUTION).requires or ()]
    wanted = re.compile(rf"""extra\s*==\s*["']{re.escape(extra)}["']""")
    return [requirement.strip() for requirement, _, marker in found if wanted.search(marker)]


def _in_a_container() -> bool:
    marks = (Path("/.dockerenv"), Path("/run/.containerenv"))
    return any(mark.exists() for mark in marks) or "KUBERNETES_SERVICE_HOST" in os.environ
