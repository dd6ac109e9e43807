"""Runs every example in the simulator, to the end: accuracy and bytes of each preset on Fashion-MNIST.

python -m benchmarks.presets [--jobs 2] [--only NAME …]; `make bench-presets`, about twenty minutes on two cores. It writes presets.json
and presets.md into benchmarks/results. The same files with real processes end with the same weights (tests/test_network.py).
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.page import Page, parser_of
from benchmarks.processes import ROOT, BenchmarkFailed, script
from sl_common.config.presets import PRESETS

GOAL = 0.80


def simulated(preset: str) -> dict[str, Any]:
    """One example's summary."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        out = Path(folder, "out")
        command = script("sl-server", "simulate", ROOT / "examples" / f"{preset}.toml", "--out", out, "--json")
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchmarkFailed(f"{preset}: ended with {done.returncode}: {done.stderr.strip()[-500:]}")
        summary: dict[str, Any] = json.loads((out / "summary.json").read_text(encoding="utf-8"))
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
    lines = ["| preset | accuracy | MB up | MB down |", "|---|---:|---:|---:|"]
    for name, r in results.items():
        short = "" if r["accuracy"] >= GOAL else " (below 80 %)"
        lines.append(f"| `{name}` | {100 * r['accuracy']:.1f} %{short} | {r['up'] / 1e6:.1f} | {r['down'] / 1e6:.1f} |")
    return "\n".join(lines)


def _kept(folder: Path) -> dict[str, dict[str, Any]]:
    """What was measured before."""
    path = folder / "presets.json"
    kept: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["results"] if path.exists() else {}
    return kept


def main() -> None:
    """Run, print, write."""
    parser = parser_of("presets", __doc__)
    parser.add_argument("--jobs", type=int, default=2, help="examples at the same time, one thread each")
    parser.add_argument("--only", nargs="*", choices=list(PRESETS), help="these presets")
    args = parser.parse_args()
    names = args.only or list(PRESETS)
    with ThreadPoolExecutor(args.jobs) as pool:
        results = dict(zip(names, pool.map(simulated, names), strict=True))
    results = _kept(args.results) | results
    results = {name: results[name] for name in PRESETS if name in results}
    page = Page("presets", "presets")
    sections = [
        "# Every preset on Fashion-MNIST",
        f"{page.made_by}, {args.jobs} at a time, torch {page.setting['torch']}; images: {page.setting['images']}.",
        "Rows that this command did not measure are kept from an earlier run of it, on the same kind of machine.",
        "Each is `sl-server simulate examples/PRESET.toml`: ten clients, the cnn cut after its first block, a few rounds of an untuned "
        "optimiser. It shows that each one learns, not which is best. Bytes are all of the run's, evaluation and weights included. "
        "Times are not measured here: several run at once.",
        table(results),
    ]
    page.save(args.results, sections, {"results": results})


if __name__ == "__main__":
    main()
