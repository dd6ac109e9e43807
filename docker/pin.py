"""pin.py [.env] : write the images of .env by digest, as the registry says now, so that later builds take the same bytes.

It asks `docker pull` for each. Either all of them are written, or the file stays as it is and the exit code is 1.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

NAMES = ("BASE", "PROMETHEUS_IMAGE", "GRAFANA_IMAGE")
_DIGEST = re.compile(r"@(sha256:[0-9a-f]{64})$")
TIMEOUT_S = 600.0


def digest_of(image: str) -> str:
    """`sha256:…` of an image that a registry has. Raises RuntimeError with the words of docker."""
    for words in (["pull", "--quiet", image], ["image", "inspect", "--format", "{{index .RepoDigests 0}}", image]):
        try:
            done = subprocess.run(["docker", *words], capture_output=True, text=True, timeout=TIMEOUT_S)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise RuntimeError(f"{image}: {error}") from error
        if done.returncode:
            raise RuntimeError(
                f"{image}: {(done.stderr or done.stdout).strip() or f'docker ended with {done.returncode}'}"
            )
    found = _DIGEST.search(done.stdout.strip())
    if found is None:
        raise RuntimeError(
            f"{image}: docker names no digest, but {done.stdout.strip()[:80]!r}: the image is of no registry"
        )
    return found[1]


def pinned(text: str) -> str:
    """The file with each image's digest. Raises RuntimeError."""
    for name in NAMES:
        line = re.search(rf"^{name}=(\S+)$", text, re.MULTILINE)
        if line is None:
            raise RuntimeError(f"{name} is not in the file")
        tag = line[1].partition("@")[0]
        text = text.replace(line[0], f"{name}={tag}@{digest_of(tag)}")
    return text


def main() -> int:
    """The exit code."""
    path = Path(sys.argv[1] if len(sys.argv) > 1 else ".env")
    try:
        text = pinned(path.read_text(encoding="utf-8"))
    except (OSError, RuntimeError) as error:
        print(f"{path} stays as it is: {error}", file=sys.stderr)
        return 1
    new = path.with_name(f"{path.name}.new")
    new.write_text(text)
    new.replace(path)
    print(f"{path}: {', '.join(NAMES)} by digest")
    return 0


if __name__ == "__main__":
    sys.exit(main())
