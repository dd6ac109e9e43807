"""Draws where the time of server and client goes, as flame graphs (py-spy; Linux, root or the same user with ptrace allowed).

python -m benchmarks.flames [--workload mlp|cnn|…] [--seconds 10]; `make bench-flames`. It writes flame-WORKLOAD-server.svg and
flame-WORKLOAD-client.svg into benchmarks/results. Widths are shares of samples in which a thread ran or held the interpreter's lock;
native frames (torch, gRPC) count for the Python line that called them.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import sides
from benchmarks.processes import BenchmarkFailed, Process, script, started
from benchmarks.step import RESULTS
from benchmarks.workloads import WORKLOADS, Workload, chosen

RATE = 400  # samples a second
STEPS = 100_000  # more than are done: the run is ended
WARM_S = 5.0
_TITLE = re.compile(r">[^<]*py-spy record[^<]*<")  # its command line


def record(process: Process, seconds: int, path: Path) -> subprocess.Popen[bytes]:
    """py-spy at work on a process."""
    options = ("--duration", seconds, "--rate", RATE, "--format", "flamegraph", "--output", path)
    return subprocess.Popen(script("py-spy", "record", "--pid", process.pid, *options), stdout=subprocess.DEVNULL)


def draw(workload: Workload, seconds: int, folder: Path) -> None:
    """One run with one client, both processes at once. Raises BenchmarkFailed if py-spy cannot look at them."""
    with tempfile.TemporaryDirectory(prefix="bench-") as place:
        toml = Path(place, "run.toml")
        toml.write_text(sides.config(workload, STEPS))
        serve = script("sl-server", "run", toml, "--listen", "127.0.0.1:0", "--out", Path(place, "out"), "--json")
        with started(serve) as server:
            address = server.line("address", sides.START_S)["address"]
            train = script("sl-client", "run", "--server", address, "--allow", "benchmarks", "--json")
            with started(train) as client:
                server.line("shard", sides.START_S)  # it has joined
                time.sleep(WARM_S)
                looks = [
                    record(process, seconds, folder / f"flame-{workload.name}-{name}.svg")
                    for name, process in (("server", server), ("client", client))
                ]
                if any(look.wait() for look in looks):
                    raise BenchmarkFailed("py-spy could not look at the processes; it needs root, or ptrace allowed")
    for name in ("server", "client"):
        path = folder / f"flame-{workload.name}-{name}.svg"
        path.write_text(_TITLE.sub(f">{workload.name}: {name}<", path.read_text()))


def main() -> None:
    """Draw."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flames", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workload", choices=(*WORKLOADS, "all"), default="all")
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    for workload in chosen(args.workload):
        try:
            draw(workload, args.seconds, args.results)
        except BenchmarkFailed as error:
            sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
