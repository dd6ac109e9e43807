"""Measures the stacked simulator against the plain one, by clients: batches trained per second.

python -m benchmarks.stacked [--pairs 7]; `make bench-stacked`. It writes stacked.json and stacked.md into benchmarks/results. Both run
the same configuration in one process, in turn, a few steps of all clients at a time; evaluation is no part of it.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.page import Page, parser_of
from sl_common.config.run_config import RunConfig
from sl_server.simulation.choice import seconds_of
from sl_server.simulation.simulation import Simulation
from sl_server.simulation.vectorized.simulation import Stacked
from sl_server.telemetry.ledger import Ledger

GOAL, GOAL_OF = 5.0, ("mlp", 100)
STEPS = 10  # of every client in one measurement
NOTE = (
    "Preset `parallel` on the embedded digits, batches of at most 8, models with their default arguments cut after the first block, one "
    "thread; a batch counts once for each client. Facts and bytes are kept as `sl-server simulate` keeps them. Both sides in turn, "
    f"{STEPS} steps of all clients at a time, the first of them left out; medians, and of the pairs the median ratio."
)
CASES = [(model, clients) for model in ("mlp", "cnn") for clients in (10, 30, 100)]
SIDES = {"plain": Simulation, "stacked": Stacked}


def config_of(model: str, clients: int, steps: int) -> RunConfig:
    """One wave of so many steps."""
    table = {"run.clients": clients, "client.wave.steps": steps, "model.name": model, "data.batch_size": 8}
    return RunConfig.from_toml('[protocol]\npreset = "parallel"', [f"{key}={value}" for key, value in table.items()])


def measure(model: str, clients: int, pairs: int) -> dict[str, Any]:
    """Medians of both sides, and of the ratios of their pairs."""
    config = config_of(model, clients, STEPS * (pairs + 2))
    facts = {side: kind(config, count=Ledger().count).facts() for side, kind in SIDES.items()}
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for number in range(pairs + 1):
        for side in SIDES if number % 2 else reversed(SIDES):
            gc.collect()  # neither side pays for what the other left
            taken = seconds_of(facts[side], STEPS * clients)
            if number:
                seconds[side].append(taken)
    ratios = [plain / stacked for plain, stacked in zip(seconds["plain"], seconds["stacked"], strict=True)]
    rates = {f"{side}_batches_per_s": STEPS * clients / statistics.median(seconds[side]) for side in SIDES}
    result = {"model": model, "clients": clients, **rates, "ratio": statistics.median(ratios), "ratios": ratios}
    print(f"{model} {clients}: {result['ratio']:.2f} times as fast", flush=True)
    return result


def table(results: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| model | clients | plain, batches/s | stacked, batches/s | stacked ÷ plain (pairs) | ≥ 5 |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for r in results:
        spread = f"{min(r['ratios']):.2f} to {max(r['ratios']):.2f}"
        verdict = ("met" if r["ratio"] >= GOAL else "NOT met") if (r["model"], r["clients"]) == GOAL_OF else ""
        lines.append(
            f"| {r['model']} | {r['clients']} | {r['plain_batches_per_s']:.0f} | {r['stacked_batches_per_s']:.0f} | "
            f"{r['ratio']:.2f} ({spread}) | {verdict} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    parser = parser_of("stacked", __doc__)
    parser.add_argument("--pairs", type=int, default=7)
    args = parser.parse_args()
    results = [measure(model, clients, args.pairs) for model, clients in CASES]
    page = Page("stacked", "stacked")
    made = f"{page.made_by}, one thread, torch {page.setting['torch']}."
    page.save(args.results, ["# The stacked simulator", made, NOTE, table(results)], {"results": results})


if __name__ == "__main__":
    main()
