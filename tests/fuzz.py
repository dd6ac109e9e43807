"""Over a million hostile inputs into everything that reads what somebody else wrote; a table at the end.

python tests/fuzz.py [--share 1.0] [--seed 0] [--page FILE] [TARGET…]; `make fuzz`. Every target has a process of its own, and but for the
live server an address space that may grow by 256 MiB. An exception that is not the typed one ends that target, with the input's number and
seed, and so does an input that costs more than 50 ms of CPU time or 64 MiB (tests/budget.py says how that is measured). Below each target
stand its slowest input and the one that took most memory; `--input N` reads one of them again. The live server's inputs are the endpoint's:
there the server's memory is bounded, and that its clients' run is undisturbed.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import os
import random
import resource
import subprocess
import sys
import time
import traceback
from collections import Counter
from dataclasses import asdict
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import fuzz_codecs
import fuzz_data
import fuzz_files
import fuzz_wire
import torch
from budget import MALLOC, Meter

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
    "past run": 10_000,
    "weights": 10_000,
    "data files": 20_000,
    "samples": 20_000,
    "tokens": 30_000,
    "token shown": 40_000,
    "certificate": 10_000,
    "private key": 5_000,
    "revoked list": 10_000,
    "inputs": 5_000,
    "live port": 5_000,
}
ROOM = 256 << 20  # bytes of address space
TARGETS = fuzz_codecs.TARGETS | fuzz_wire.TARGETS | fuzz_files.TARGETS | fuzz_data.TARGETS
HEAD = f"{'target':<18} {'inputs':>9} {'crashes':>7} {'seconds':>7} {'peak MiB':>8} {'most ms':>7} {'most MiB':>8}  how they ended"


def once(target: str, number: int, seed: int, meter: Meter) -> str:
    """One input; the same number and seed give the same one."""
    data, rest = TARGETS[target].make(random.Random(f"{seed}/{target}/{number}"))
    return meter.run(number, data, partial(TARGETS[target].read, data, rest))


def fuzz(target: str, inputs: int, seed: int, first: int = 0) -> tuple[Counter[str], Meter]:
    """How the inputs ended, and what they cost; raises what must not happen, with the number of the input."""
    ended: Counter[str] = Counter()
    meter = Meter()
    try:
        for number in range(first, first + inputs):
            try:
                ended[once(target, number, seed, meter)] += 1
            except BaseException as error:
                error.add_note(f"input {number} of {target!r}, seed {seed}")
                raise
    finally:
        meter.close()
    return ended, meter


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
    costs: dict[str, object] = {}
    try:
        if target == "live port":
            ended, peak = live(inputs, seed)
        else:
            fuzz(target, 200, seed + 1)  # whatever is loaded on first use
            gc.collect()
            gc.freeze()  # or each collection looks at all of torch
            limit_memory()
            ended, meter = fuzz(target, inputs, seed)
            costs = {"slowest": meter.slowest, "largest": meter.largest}
    except BaseException:
        crash = traceback.format_exc()
    peak = peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    row = {"target": target, "inputs": inputs, "ended": ended, "crash": crash, "peak_mb": peak}
    seconds = time.monotonic() - began
    return row | {"seconds": seconds} | {what: asdict(one) for what, one in costs.items() if one is not None}  # type: ignore[call-overload]


def again(target: str, number: int, seed: int) -> None:
    """One input by itself: how it ends, and what it costs."""
    fuzz(target, 50, seed + 1)
    data, _ = TARGETS[target].make(random.Random(f"{seed}/{target}/{number}"))
    print(f"{len(data):,} bytes: {data[:100]!r}")
    ended, meter = fuzz(target, 1, seed, first=number)
    assert meter.slowest is not None
    print(f"{next(iter(ended))}: {meter.slowest.cost}")


def main() -> int:
    """All targets, or those that are named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    parser.add_argument("--share", type=float, default=1.0, help="of the inputs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--input", type=int, help="only this one of the target's")
    parser.add_argument("--page", type=Path, help="where to write the table, if nothing crashed")
    parser.add_argument("--row", action="store_true", help="one target in this process, as JSON")
    args = parser.parse_args()
    if args.input is not None:
        again(args.targets[0], args.input, args.seed)
        return 0
    if args.row:
        print(json.dumps(run_one(args.targets[0], int(SIZES[args.targets[0]] * args.share), args.seed)))
        return 0
    rows = []
    print(HEAD, flush=True)
    for target in args.targets or SIZES:
        rows.append(_row(target, args.share, args.seed))
        show(rows[-1])
    crashes = sum(bool(row["crash"]) for row in rows)
    total = (
        f"{sum(row['inputs'] for row in rows):,} inputs, {crashes} crashes, {sum(row['seconds'] for row in rows):.0f} s"
    )
    print(total)
    if args.page is not None and not crashes:
        args.page.write_text(page(rows, total))
    return 1 if crashes else 0


def _row(target: str, share: float, seed: int) -> dict:
    """From a process of its own."""
    command = [sys.executable, __file__, "--row", target, "--share", str(share), "--seed", str(seed)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=os.environ | MALLOC)
    row = json.loads(done.stdout) if done.returncode == 0 else {"crash": f"exit {done.returncode}", "target": target}
    return {"inputs": 0, "ended": {}, "seconds": 0.0, "peak_mb": 0} | row


def _most(row: dict) -> tuple[str, str]:
    """Milliseconds of the slowest input and MiB of the one that took most."""
    if "slowest" not in row:
        return "–", "–"
    return f"{1e3 * row['slowest']['cost']['cpu_s']:.1f}", f"{row['largest']['cost']['nbytes'] / 2**20:.1f}"


def _ended(row: dict) -> str:
    return ", ".join(f"{how} {n:,}" for how, n in sorted(row["ended"].items(), key=lambda one: -one[1]))


def show(row: dict) -> None:
    """As a line, its costliest inputs and what went wrong below it."""
    ms, mib = _most(row)
    numbers = f"{row['inputs']:>9,} {int(bool(row['crash'])):>7} {row['seconds']:>7.0f} {row['peak_mb']:>8,}"
    print(f"{row['target']:<18} {numbers} {ms:>7} {mib:>8}  {_ended(row)}", flush=True)
    for what, unit in (("slowest", f"{ms} ms"), ("largest", f"{mib} MiB")):
        if what in row:
            one = row[what]
            print(f"  {what}: {unit}, input {one['number']}, {one['nbytes']:,} bytes, {one['head']}", flush=True)
    if row["crash"]:
        print(row["crash"], flush=True)


def page(rows: list[dict], total: str) -> str:
    """The table for benchmarks/results/fuzz.md."""
    lines = [
        "# Hostile inputs",
        "",
        f"Printed by `make fuzz` on {datetime.date.today()} on a machine of {os.cpu_count()} cores. A crash is anything but the answers that are listed, "
        "and an input that costs more than 50 ms of CPU time or 64 MiB of memory, three times.",
        "",
        "| target | inputs | crashes | seconds | peak MiB | slowest input, ms | largest input, MiB | how they ended |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        ms, mib = _most(row)
        numbers = (
            f"{row['inputs']:,} | {int(bool(row['crash']))} | {row['seconds']:.0f} | {row['peak_mb']} | {ms} | {mib}"
        )
        lines.append(f"| {row['target']} | {numbers} | {_ended(row)} |")
    return "\n".join([*lines, "", f"{total}.", ""])


if __name__ == "__main__":
    sys.exit(main())
