"""lock.py PYTHON: write constraints-hashed.txt, which names each package that is installed in an environment and the hash of its file.

Asks pip which file it would take for each version; nothing is installed. The hashes are those of this platform's files.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

LOCK = Path(__file__).parent.parent / "constraints-hashed.txt"
HEAD = """\
# Every package of our own runs, with the hash of the file that pip took for it: `make lock` writes this, `make install-hashed` uses it.
# Made on {platform}; another platform has other files. torch's is the build that pip finds there, as in constraints.txt.
"""


def pip(python: str, *arguments: str) -> str:
    """What pip prints."""
    command = [python, "-m", "pip", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def locked(python: str) -> str:
    """The file's text."""
    frozen = pip(python, "freeze", "--exclude-editable").splitlines()
    names = [line for line in frozen if line and not line.startswith(("-", "#")) and "@" not in line]
    with tempfile.TemporaryDirectory() as folder:
        wanted, report = Path(folder, "wanted.txt"), Path(folder, "report.json")
        wanted.write_text("\n".join(names) + "\n", encoding="utf-8")
        asked = ("install", "--dry-run", "--ignore-installed", "--no-deps", "--quiet", "--report", str(report))
        pip(python, *asked, "-r", str(wanted))
        found = json.loads(report.read_text(encoding="utf-8"))["install"]
    lines = [
        f"{one['metadata']['name'].lower()}=={one['metadata']['version']} "
        f"--hash=sha256:{one['download_info']['archive_info']['hashes']['sha256']}"
        for one in found
    ]
    where = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    return HEAD.format(platform=where) + "\n".join(sorted(lines)) + "\n"


def main() -> None:
    """Write the file, whole or not at all."""
    try:
        text = locked(sys.argv[1])
    except (subprocess.CalledProcessError, OSError, KeyError) as error:
        sys.exit(f"{LOCK.name} stays as it is: {error!r}")
    LOCK.write_text(text, encoding="utf-8")
    sys.stdout.write(f"wrote {LOCK.name}: {text.count('--hash')} packages\n")


if __name__ == "__main__":
    main()
