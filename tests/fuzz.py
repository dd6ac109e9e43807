"""Over a million hostile inputs into everything that reads what somebody else wrote; a table at the end.

python tests/fuzz.py [--share 1.0] [--seed 0] [TARGET…]; `make fuzz`. Every target has a process of its own, and but for the live server
an address space that may grow by 256 MiB. An exception that is not the typed one ends that target, with the input's number and seed.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import fuzz_codecs
import fuzz_files
import fuzz_wire
import torch

SIZES = {
    "codecs": 250_000,
    "endpoint": 250_000,
    "session": 30_000,
    "greeting": 220_000,
    "probe": 80_000,
    "event log": 30_000,
    "handed-out config": 15_000,
    "config file": 15_000,
    "checkpoint": 40_000,
    "run directory": 3_000,
    "client's snapshot": 8_000,
    "tokens": 30_000,
    "token shown": 40_000,
    "certificate": 10_000,
    "private key": 5_000,
    "revoked list": 10_000,
    "live port": 5_000,
}
ROOM = 256 << 20  # bytes of address space
TARGETS = fuzz_wire.TARGETS | fuzz_files.TARGETS


def once(target: str, number: int, seed: int) -> str:
    """One input; the same number and seed give the same one."""
    return TARGETS[target](random.Random(f"{seed}/{target}/{number}"))


def fuzz(target: str, inputs: int, seed: int) -> Counter[str]:
    """How the inputs ended; raises what must not happen, with the number of the input."""
    if target == "codecs":
        return fuzz_codecs.fuzz(inputs, seed)
    ended: Counter[str] = Counter()
    for number in range(inputs):
        try:
            ended[once(target, number, seed)] += 1
        except BaseException as error:
            error.add_note(f"input {number} of {target!r}, seed {seed}")
            raise
    return ended


def live(inputs: int, seed: int) -> tuple[Counter[str], int]:
    """Runs under attack, one after another."""
    import fuzz_port

    rng, ended, left, peak = random.Random(seed), Counter[str](), inputs, 0
    while left > 0:
        sent, how, memory = fuzz_port.episode(rng, rounds=400, most=left)
        left, ended, peak = left - sent, ended + how, max(peak, memory)
    return ended, peak


def limit_memory() -> None:
    """From now on the address space may grow by ROOM."""
    virtual = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (virtual + ROOM, resource.RLIM_INFINITY))


def run_one(target: str, inputs: int, seed: int) -> dict[str, object]:
    """A row of the table."""
    torch.set_num_threads(1)
    began, crash, peak = time.monotonic(), "", 0
    ended: Counter[str] = Counter()
    try:
        if target == "live port":
            ended, peak = live(inputs, seed)
        else:
            fuzz(target, 200, seed + 1)  # whatever is loaded on first use
            limit_memory()
            ended = fuzz(target, inputs, seed)
    except BaseException:
        crash = traceback.format_exc()
    peak = peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    took = time.monotonic() - began
    return {"target": target, "inputs": inputs, "ended": ended, "crash": crash, "seconds": took, "peak_mb": peak}


def main() -> int:
    """All targets, or those that are named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    parser.add_argument("--share", type=float, default=1.0, help="of the inputs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--row", action="store_true", help="one target in this process, as JSON")
    args = parser.parse_args()
    if args.row:
        print(json.dumps(run_one(args.targets[0], int(SIZES[args.targets[0]] * args.share), args.seed)))
        return 0
    rows = []
    print(f"{'target':<18} {'inputs':>9} {'crashes':>7} {'seconds':>7} {'peak MiB':>8}  how they ended", flush=True)
    for target in args.targets or SIZES:
        command = [sys.executable, __file__, "--row", target, "--share", str(args.share), "--seed", str(args.seed)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        row = (
            json.loads(done.stdout) if done.returncode == 0 else {"crash": f"exit {done.returncode}", "target": target}
        )
        rows.append({"inputs": 0, "ended": {}, "seconds": 0.0, "peak_mb": 0} | row)
        show(rows[-1])
    crashes = sum(bool(row["crash"]) for row in rows)
    print(
        f"{sum(row['inputs'] for row in rows):,} inputs, {crashes} crashes, {sum(row['seconds'] for row in rows):.0f} s"
    )
    return 1 if crashes else 0


def show(row: dict) -> None:
    """As a line, and what went wrong below it."""
    ended = ", ".join(f"{how} {n:,}" for how, n in sorted(row["ended"].items(), key=lambda one: -one[1]))
    numbers = f"{row['inputs']:>9,} {int(bool(row['crash'])):>7} {row['seconds']:>7.0f} {row['peak_mb']:>8,}"
    print(f"{row['target']:<18} {numbers}  {ended}", flush=True)
    if row["crash"]:
        print(row["crash"], flush=True)


if __name__ == "__main__":
    sys.exit(main())
