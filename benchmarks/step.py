"""Measures one training step of the real system against a bare gRPC stream, in interleaved pairs, and where its time goes.

python -m benchmarks.step [--pairs 5] [--workload mlp|cnn|all] [--steps N]

It writes step.json (all raw numbers) and step.md into benchmarks/results, or --results DIR; step-mlp.json and step-mlp.md if one workload
is asked for.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import signal
import sys
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import torch

from benchmarks import data, report, sides
from benchmarks.awake import add_option, awake, note
from benchmarks.processes import BenchmarkFailed
from benchmarks.workloads import WORKLOADS, Workload, chosen, name_of

PIECE = 1 << 20
RESULTS = Path(__file__).with_name("results")


def measure(workload: Workload, steps: int, pairs: int) -> dict[str, Any]:
    """All sides in turn, `pairs` times."""
    run: dict[str, Callable[[Workload, int], sides.Result]] = {"plain": sides.plain, "bare": sides.bare}
    if torch.Size((64, *workload.cut)).numel() * 4 > PIECE:
        run["bare-1MiB"] = partial(sides.bare, piece=PIECE)
    run["bare-tuned"] = partial(sides.bare, tuned=True)
    run["ours"] = sides.ours
    runs: dict[str, list[sides.Result]] = {side: [] for side in run}
    for pair in range(pairs):
        for side, once in run.items():
            runs[side].append(once(workload, steps))
        rates = ", ".join(f"{side} {found[-1]['steps_per_s']:.1f}" for side, found in runs.items())
        print(f"{workload.name} {pair + 1}/{pairs}: {rates} steps/s", flush=True)
    return report.summarise(workload.name, steps, runs)


def where() -> dict[str, Any]:
    """What the numbers depend on."""
    return {
        "date": date.today().isoformat(),
        "cpu": _cpu(),
        "cpus": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "grpcio": grpc.__version__,
        "images": data.what(),
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("--pairs", type=int, default=5, help="how often each side runs")
    parser.add_argument("--workload", choices=(*WORKLOADS, "all"), default="all")
    parser.add_argument("--steps", type=int, help="of one run, by default 1500 for mlp and 60 for cnn; as many warm up")
    add_option(parser)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the page and its numbers")
    return parser.parse_args()


def main() -> None:
    """Measure, print, write; no process outlives it."""
    args = _parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds the blocks that end the processes
    try:
        with awake(not args.asleep):
            results = [measure(w, args.steps or w.steps, args.pairs) for w in chosen(args.workload)]
    except BenchmarkFailed as error:
        sys.exit(f"error: {error}")
    command = shlex.join(["python", "-m", "benchmarks.step", *sys.argv[1:]])
    setting = where()
    args.results.mkdir(parents=True, exist_ok=True)
    raw = {"command": command, **setting, "results": results}
    name = name_of("step", args.workload)
    (args.results / f"{name}.json").write_text(json.dumps(raw, indent=2) + "\n")
    (args.results / f"{name}.md").write_text(report.markdown(command, results, setting, note(not args.asleep)))
    print(
        "\n".join(
            [
                report.rates_table(results),
                *map(report.phases_table, results),
                report.cost_table(results),
                *map(report.bytes_line, results),
            ]
        )
    )
    print("\n".join(report.verdicts(results)))


if __name__ == "__main__":
    main()
