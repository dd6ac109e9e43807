"""Counts the CPU seconds a step of the server and the client process, beside those of a bare gRPC stream, in interleaved pairs.

python -m benchmarks.cost [--pairs 9] [--workload mlp|cnn|all] [--steps N]; `make bench-cost`, a few minutes on two idle cores (Linux).

Each process's own CPU clock is read before and after a counted number of steps, so that neither starting up nor warming up is in it. Time on
a clock depends on what else a machine does; CPU time much less so, and hardware counters are not to be had on every host. It adds this
host's run to cost.json, in place of an earlier one of the same host, writes cost.md, and states the medians in docs/explanation/speed.md; with --results
FOLDER all that is in that folder is this run.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from benchmarks import cost_page, sides
from benchmarks.awake import add_option, awake
from benchmarks.page import parser_of
from benchmarks.processes import BenchmarkFailed
from benchmarks.step import RESULTS, where
from benchmarks.workloads import WORKLOADS, Workload, chosen

STEPS = {"mlp": 600, "cnn": 40}  # that count; as many warm up
TRIES = 3  # of one run whose server ended before it was looked at
Row = dict[str, float]


def row_of(result: sides.Result) -> Row | None:
    """The numbers that are kept of one run; None if it was over before it was looked at."""
    if "cpu_ms" not in result:
        return None
    return {
        "server_ms": float(result["cpu_ms"]["server"]),
        "client_ms": float(result["cpu_ms"]["client"]),
        "steps_per_s": float(result["steps_per_s"]),
    }


def _once(run: Callable[[], sides.Result]) -> Row:
    for _ in range(TRIES):
        row = row_of(run())
        if row is not None:
            return row
    raise BenchmarkFailed(f"the run was over before its CPU time was read, {TRIES} times")


def measure(workload: Workload, steps: int, pairs: int) -> dict[str, Any]:
    """Both sides in turn, `pairs` times; neither is always the first."""
    run = {"bare": partial(sides.bare, workload, steps), "ours": partial(sides.ours, workload, steps, phases=False)}
    rows: list[dict[str, Row]] = []
    for number in range(pairs):
        order = list(run) if number % 2 == 0 else list(run)[::-1]
        taken = {side: _once(run[side]) for side in order}
        rows.append({side: taken[side] for side in run})
        said = ", ".join(
            f"{side} {one['server_ms']:.3f} + {one['client_ms']:.3f} ms, {one['steps_per_s']:.1f}/s"
            for side, one in rows[-1].items()
        )
        print(f"{workload.name} {number + 1}/{pairs}: {said}", flush=True)
    return {"workload": workload.name, "steps": steps, "pairs": rows}


def host() -> dict[str, Any]:
    """The machine, and what it was doing before anything was started."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = [round(one, 2) for one in os.getloadavg()]
    return {**where(), "cores": cores, "kernel": platform.release(), "load_before": load}


def joined(runs: Sequence[Mapping[str, Any]], new: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Hosts in the order in which they were first measured, and `new` in its own host's place."""
    at = [index for index, run in enumerate(runs) if cost_page.same_host(run, new)]
    if not at:
        return [*runs, new]
    kept = list(runs)
    if {r["workload"] for r in new["results"]} < {r["workload"] for r in kept[at[0]]["results"]}:
        rest = [r for r in kept[at[0]]["results"] if r["workload"] not in {n["workload"] for n in new["results"]}]
        raise BenchmarkFailed(
            f"this host's run would lose {[r['workload'] for r in rest]}: take all, or --results FOLDER"
        )
    kept[at[0]] = new
    return kept


def main() -> None:
    """Measure, print, write; no process outlives it."""
    parser = parser_of("cost", __doc__)
    parser.add_argument("--pairs", type=int, default=9, help="how often each side runs")
    parser.add_argument("--workload", choices=(*WORKLOADS, "all"), default="all", help="all: mlp and cnn")
    parser.add_argument("--steps", type=int, help=f"of one run, by default {STEPS}; as many warm up")
    add_option(parser)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds the blocks that end the processes
    command = shlex.join(["python", "-m", "benchmarks.cost", *sys.argv[1:]])
    run: dict[str, Any] = {"command": command, **host(), "kept_awake": not args.asleep}
    path = args.results / "cost.json"
    before = json.loads(path.read_text())["hosts"] if path.exists() and args.results == RESULTS else []
    try:
        joined(
            before, {**run, "results": [{"workload": w.name} for w in chosen(args.workload)]}
        )  # or nothing is measured
        with awake(not args.asleep):
            run["results"] = [
                measure(w, args.steps or STEPS.get(w.name, w.steps), args.pairs) for w in chosen(args.workload)
            ]
        hosts = joined(before, run)
    except BenchmarkFailed as error:
        sys.exit(f"error: {error}")
    args.results.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"hosts": hosts}, indent=1) + "\n")
    path.with_suffix(".md").write_text(cost_page.page(hosts))
    print(cost_page.section(run))
    if args.results == RESULTS:
        cost_page.state_in_speed()


if __name__ == "__main__":
    main()
