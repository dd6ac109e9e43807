"""Makes a virtual environment for each peer that needs one.

python -m benchmarks.peers.install [NAME…]

The folders are build/peers/PACKAGE. Before anything is installed pip says what it would bring: CUDA's packages are refused, so torch has
to come as a CPU wheel (PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL where the default index has none).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from benchmarks.peers.catalog import NEEDED, PEERS, Peer
from benchmarks.processes import ROOT

CONSTRAINTS = (ROOT / "constraints.txt", Path(__file__).with_name("constraints.txt"))
CUDA = ("nvidia-", "triton", "cuda-")


class NotInstalled(Exception):
    """pip said no, or would bring what nobody wants."""


def _pip(peer: Peer, *args: str) -> None:
    constraints = [part for path in CONSTRAINTS for part in ("--constraint", str(path))]
    command = [str(peer.python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *constraints, *args]
    done = subprocess.run([*command, *NEEDED, peer.package], check=False, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise NotInstalled(f"pip: {' '.join(errors) or done.returncode}")


def install(peer: Peer) -> None:
    """Make the environment, or complete it. Raises NotInstalled."""
    if not peer.python.exists():
        venv.create(peer.venv, with_pip=True)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        plan = Path(folder, "plan.json")
        _pip(peer, "--dry-run", "--report", str(plan))
        names = [item["metadata"]["name"].lower() for item in json.loads(plan.read_text())["install"]]
    unwanted = [name for name in names if name.startswith(CUDA)]
    if unwanted:
        raise NotInstalled(f"pip would bring {', '.join(unwanted)}: give it a CPU wheel of torch")
    _pip(peer)


def main() -> None:
    """Install the peers named, by default all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.install", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(PEERS))
    args = parser.parse_args()
    unknown = set(args.names) - set(PEERS)
    if unknown:
        parser.error(f"no such peer: {', '.join(sorted(unknown))}")
    chosen = {PEERS[name].venv: PEERS[name] for name in args.names or PEERS if PEERS[name].package}
    failed = 0
    for peer in chosen.values():
        try:
            install(peer)
        except (NotInstalled, OSError, subprocess.CalledProcessError) as error:
            print(f"{peer.package}: not installed: {error}", flush=True)
            failed += 1
        else:
            print(f"{peer.package}: {peer.venv}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
