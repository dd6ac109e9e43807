"""Draws what the peers' benchmark measured: a picture beside each page's numbers.

python -m benchmarks.plot NAME.json…; `python -m benchmarks.peers` does it too.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

OURS, LIMIT, PEER = "#1b6ca8", "#9aa5b1", "#d9a066"
LIMITS = ("plain", "raw-tcp", "bare", "bare-tuned")


def rates(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A panel for each workload and number of clients: steps/s of every side, median with lowest and highest, the fastest on top."""
    figure, panels = plt.subplots(len(results), 1, figsize=(8, 2.9 * len(results)), layout="constrained", squeeze=False)
    for panel, result in zip(panels.flat, results, strict=True):
        found = sorted(result["steps_per_s"].items(), key=lambda side: median(side[1]))
        middles = [median(values) for _, values in found]
        reach = [
            [middle - min(values) for middle, (_, values) in zip(middles, found, strict=True)],
            [max(values) - middle for middle, (_, values) in zip(middles, found, strict=True)],
        ]
        colours = [OURS if side == "ours" else LIMIT if side in LIMITS else PEER for side, _ in found]
        panel.barh([side for side, _ in found], middles, xerr=reach, color=colours, ecolor="#444444", capsize=2)
        most = max(max(values) for _, values in found)
        for place, (middle, (_, values)) in enumerate(zip(middles, found, strict=True)):
            panel.text(max(values) + 0.01 * most, place, f" {middle:.1f}", va="center", fontsize=8)
        panel.set_xlim(0, 1.12 * most)
        panel.set_title(f"{result['workload']}, clients: {result['clients']}", loc="left", fontsize=10)
        panel.set_xlabel("steps/s per client", fontsize=8)
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in (OURS, LIMIT, PEER)]
    figure.legend(
        handles, ["ours", "limits: no system at all", "peers"], loc="outside lower center", ncols=3, fontsize=8
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """From the page's numbers."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("numbers", nargs="+", type=Path, metavar="NAME.json")
    for path in parser.parse_args().numbers:
        rates(json.loads(path.read_text(encoding="utf-8"))["results"], path.with_suffix(".png"))


if __name__ == "__main__":
    main()
