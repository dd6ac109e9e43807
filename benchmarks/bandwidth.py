"""Measures a step that is nothing but its bytes, 16.8 MB each way, against a bare stream of 1 MiB pieces; and what float8 makes of it.

python -m benchmarks.bandwidth [--pairs 5] [--steps 40]; `make bench-bandwidth`. It writes bandwidth.json and bandwidth.md into
benchmarks/results.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import sides
from benchmarks.awake import add_option, awake, note
from benchmarks.page import Page, parser_of
from benchmarks.processes import BenchmarkFailed
from benchmarks.report import PHASES
from benchmarks.step import PIECE
from benchmarks.workloads import BATCH, WORKLOADS

WIDE = WORKLOADS["wide"]
GOALS = {"identity": 0.85, "float8": 1.5}
CODECS = {"identity": "", "float8": '[codec]\nup = { kind = "float8" }\ndown = { kind = "float8" }\n'}
TEXTS = {
    "identity": f"identity: MB/s of tensors over the bare stream's in 1 MiB pieces, wanted ≥ {GOALS['identity']}",
    "float8": f"float8 both ways: steps/s over identity's, wanted ≥ {GOALS['float8']}",
}
Runs = Mapping[str, Sequence[sides.Result]]


def ratios(runs: Runs) -> dict[str, list[float]]:
    """Pair by pair: identity of the bare stream in pieces, float8 of identity."""
    rates = {side: [run["steps_per_s"] for run in found] for side, found in runs.items()}
    against = {"identity": "bare-1MiB", "float8": "identity"}
    return {
        side: [ours / other for ours, other in zip(rates[side], rates[reference], strict=True)]
        for side, reference in against.items()
    }


def table(runs: Runs) -> str:
    """Markdown: rates, and where the time goes."""
    megabytes = 2 * 4e-6 * BATCH * math.prod(WIDE.cut)  # of tensors, both ways
    lines = [f"| | {' | '.join(runs)} |", f"|---|{'---:|' * len(runs)}"]
    for text, choose in (("median", median), ("lowest", min), ("highest", max)):
        cells = [f"{choose([run['steps_per_s'] for run in found]):.2f}" for found in runs.values()]
        lines.append(f"| steps/s, {text} | {' | '.join(cells)} |")
    cells = [f"{median(run['steps_per_s'] for run in found) * megabytes:,.0f}" for found in runs.values()]
    lines.append(f"| MB/s of float32, both ways together | {' | '.join(cells)} |")
    for phase, text in PHASES.items():
        taken = [[run["phases"][phase] for run in found if phase in run["phases"]] for found in runs.values()]
        if any(taken):
            lines.append(f"| {text}, ms | {' | '.join(f'{median(one):.2f}' if one else '' for one in taken)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    parser = parser_of("bandwidth", __doc__)
    parser.add_argument("--pairs", type=int, default=5, help="how often each side runs")
    parser.add_argument("--steps", type=int, default=WIDE.steps, help="of one run that count; as many warm up")
    add_option(parser)
    args = parser.parse_args()
    run: dict[str, Callable[[], sides.Result]] = {
        "bare": partial(sides.bare, WIDE, args.steps),
        "bare-1MiB": partial(sides.bare, WIDE, args.steps, piece=PIECE),
        "bare-tuned": partial(sides.bare, WIDE, args.steps, tuned=True),
        **{name: partial(sides.ours, WIDE, args.steps, extra=codec) for name, codec in CODECS.items()},
    }
    runs: dict[str, list[sides.Result]] = {side: [] for side in run}
    with awake(not args.asleep):
        for pair in range(args.pairs):
            for side, once in run.items():
                try:
                    runs[side].append(once())
                except BenchmarkFailed as error:
                    sys.exit(f"error: {error}")
            rates = ", ".join(f"{side} {found[-1]['steps_per_s']:.2f}" for side, found in runs.items())
            print(f"{pair + 1}/{args.pairs}: {rates} steps/s", flush=True)
    found = ratios(runs)
    medians = {side: median(values) for side, values in found.items()}
    save(args.results, runs, found, medians, args.steps, note(not args.asleep))


def save(
    folder: Path, runs: Runs, found: Mapping[str, list[float]], medians: Mapping[str, float], steps: int, about: str
) -> None:
    """The page and its numbers."""
    page = Page("bandwidth", "bandwidth")
    said = [
        f"- {text}: {medians[side]:.3f} ({min(found[side]):.3f} to {max(found[side]):.3f}), "
        f"{'met' if medians[side] >= GOALS[side] else 'NOT met'}"
        for side, text in TEXTS.items()
    ]
    sections = [
        "# A step that is nothing but its bytes",
        f"{page.made_by}, torch {page.setting['torch']}, grpcio {page.setting['grpcio']}; images: {page.setting['images']}.",
        f"`wide` ({WIDE.text}), batch {BATCH}, one server and one client process on loopback, one torch thread each; {steps} steps a run "
        f"after as many to warm up, {len(runs['bare'])} interleaved pairs. {about}".rstrip(),
        "\n".join(said),
        table(runs),
    ]
    raw: dict[str, Any] = {"steps": steps, "ratios": dict(found), "medians": dict(medians), "runs": dict(runs)}
    page.save(folder, sections, raw)


if __name__ == "__main__":
    main()
