"""Runs every example in the simulator, to the end: accuracy, bytes and time of each preset on Fashion-MNIST.

python -m benchmarks.presets [--jobs 2] [--only NAME …]; `make bench-presets`, about twenty minutes on two cores. It writes presets.json
and presets.md into benchmarks/results. The same files with real processes end with the same weights (tests/test_network.py).
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.processes import ROOT, BenchmarkFailed, script
from benchmarks.step import RESULTS, where
from sl_common.presets import PRESETS

GOAL = 0.80


def simulated(preset: str) -> dict[str, Any]:
    """One example's summary."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        out = Path(folder, "out")
        command = script("sl-server", "simulate", ROOT / "examples" / f"{preset}.toml", "--out", out, "--json")
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchmarkFailed(f"{preset}: ended with {done.returncode}: {done.stderr.strip()[-500:]}")
        summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    up, down = (sum(summary["bytes"][way].values()) for way in ("up", "down"))
    accuracy, seconds = summary["evaluation"]["accuracy"], summary["seconds"]
    print(f"{preset}: {accuracy:.2%} in {seconds:.0f} s", flush=True)
    return {
        "accuracy": accuracy,
        "seconds": seconds,
        "up": up,
        "down": down,
        "bytes": summary["bytes"],
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| preset | accuracy | MB up | MB down | seconds |", "|---|---:|---:|---:|---:|"]
    for name, r in results.items():
        short = "" if r["accuracy"] >= GOAL else " (below 80 %)"
        lines.append(
            f"| `{name}` | {100 * r['accuracy']:.1f} %{short} | {r['up'] / 1e6:.1f} | {r['down'] / 1e6:.1f} | {r['seconds']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.presets", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2, help="examples at the same time, one thread each")
    parser.add_argument("--only", nargs="*", choices=list(PRESETS), help="these presets")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    names = args.only or list(PRESETS)
    with ThreadPoolExecutor(args.jobs) as pool:
        results = dict(zip(names, pool.map(simulated, names), strict=True))
    command = shlex.join(["python", "-m", "benchmarks.presets", *sys.argv[1:]])
    setting = where()
    head = (
        f"Made by `{command}` on {setting['date']}: {setting['cpu']} × {setting['cpus']}, {args.jobs} at a time, "
        f"torch {setting['torch']}; images: {setting['images']}."
    )
    note = (
        "Each is `sl-server simulate examples/PRESET.toml`: ten clients, the cnn cut after its first block, a few rounds of an untuned "
        "optimiser. It shows that each one learns, not which is best. Bytes are all of the run's, evaluation and weights included; "
        "seconds are of two simulators side by side."
    )
    text = "\n\n".join(["# Every preset on Fashion-MNIST", head, note, table(results)])
    args.results.mkdir(parents=True, exist_ok=True)
    (args.results / "presets.md").write_text(text + "\n")
    (args.results / "presets.json").write_text(
        json.dumps({"command": command, **setting, "results": results}, indent=1) + "\n"
    )
    print(text)


if __name__ == "__main__":
    main()
