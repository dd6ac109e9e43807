"""Measures one server under 10 to 1,000 connected clients: latency, CPU a message, memory a client.

python -m benchmarks.crowd [--clients 10 64 250 1000] [--rounds 4] [--steps 5]; `make bench-crowd`. It writes crowd.json and crowd.md into
benchmarks/results. The server is `sl-server run` in a process of its own; the clients are light drivers in one process
(benchmarks/crowd_driver.py) with real streams, endpoints and flows, so that the machine's other core holds all of them.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.page import Page, parser_of
from benchmarks.processes import BenchmarkFailed, Line, Process, module, script, started

PRESETS = {"parallel": 'merge = { kind = "average" }', "splitfed_v1": ""}  # with averages the test set is split, too
LIMIT_S = 540.0
BATCHES, LEAST = (
    6_000,
    20,
)  # of all clients in a round; of each, at least: what a round costs beside its steps is to weigh little
CONFIG = """
[run]
name = "crowd"
rounds = {rounds}
clients = {clients}
grace_s = 120
[model]
name = "mlp"
args = {{ hidden = [16] }}
[data]
name = "digits"
batch_size = 1
[protocol]
preset = "{preset}"
{merge}
[client]
wave = {{ steps = {steps} }}
[server.limits]
strangers = 2000
hellos_per_minute = 10000
[eval]
every = 0
"""
NOTE = (
    "A tiny network (64 → 16 | 16 → 10), one sample a batch, so that everything but the system is small; every client trains in every "
    "round. `parallel` waits for all clients in every step and trains them as one cohort, `splitfed_v1` serves each one as it comes, with a head "
    "of its own. Latency is from sending a batch to having its gradient, the first round left out. CPU is the server process's, user and "
    "system, over all rounds but the first, a round's beginning and end and its checkpoint included, by messages of training in both "
    "directions; it includes the head's own computation. RSS is the "
    "server's high-water mark, beyond that with the fewest clients, a client. Drivers and server share two cores: the times are no "
    "server's limit."
)


class Watch:
    """The server's CPU seconds at the end of each round, and its memory."""

    def __init__(self) -> None:
        self.process: Process | None = None
        self.cpu: list[float] = []
        self.at: list[float] = []
        self.peak_kb = 0

    def hear(self, line: Line) -> None:
        """A line of the server's."""
        if line.get("event") == "round" and self.process is not None:
            self.cpu.append(self.process.cpu_s())
            self.at.append(time.perf_counter())
            self.peak_kb = self.process.peak_kb()


def measure(preset: str, clients: int, rounds: int, steps: int) -> dict[str, Any]:
    """One run."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        toml = Path(folder, "run.toml")
        toml.write_text(
            CONFIG.format(preset=preset, merge=PRESETS[preset], clients=clients, rounds=rounds, steps=steps)
        )
        watch = Watch()
        command = script("sl-server", "run", toml, "--listen", "127.0.0.1:0", "--out", Path(folder, "out"), "--json")
        with started(command, watch.hear) as server:
            watch.process = server
            address = server.line("address", LIMIT_S)["address"]
            with started(
                module("crowd_driver", "--address", address, "--config", toml, "--clients", clients)
            ) as drivers:
                latency = drivers.line("latency", LIMIT_S)["latency"]
            server.finish(LIMIT_S)
        summary = json.loads(Path(folder, "out", "summary.json").read_text(encoding="utf-8"))
    if not summary["finished"] or len(watch.cpu) != rounds:
        raise BenchmarkFailed(f"{preset} with {clients} clients: {summary['reason']}, {len(watch.cpu)} rounds seen")
    messages = 2 * clients * steps * (rounds - 1)
    wall = watch.at[-1] - watch.at[0]
    return {
        "preset": preset,
        "clients": clients,
        "steps": steps,
        "p50_ms": 1e3 * latency["p50"],
        "p99_ms": 1e3 * latency["p99"],
        "cpu_ms_per_message": 1e3 * (watch.cpu[-1] - watch.cpu[0]) / messages,
        "steps_per_s": messages / 2 / wall,
        "peak_kb": watch.peak_kb,
    }


def table(results: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| preset | clients | steps a round | steps/s, all | p50, ms | p99, ms | p99 ÷ p50 | server CPU, ms a message | server RSS, MB | KB a client |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for r in results:
        least = next(one for one in results if one["preset"] == r["preset"])
        more = r["clients"] - least["clients"]
        each = f"{(r['peak_kb'] - least['peak_kb']) / more:.0f}" if more else ""
        lines.append(
            f"| `{r['preset']}` | {r['clients']:,} | {r['steps']} | {r['steps_per_s']:.0f} | {r['p50_ms']:.1f} | {r['p99_ms']:.1f} | "
            f"{r['p99_ms'] / r['p50_ms']:.1f} | {r['cpu_ms_per_message']:.3f} | {r['peak_kb'] / 1e3:.0f} | {each} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    parser = parser_of("crowd", __doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 64, 250, 1000])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument(
        "--steps", type=int, help=f"of a client in a round; by default {BATCHES:,} of all, and {LEAST} at least"
    )
    args = parser.parse_args()
    results = []
    for preset in PRESETS:
        for clients in sorted(args.clients):
            steps = args.steps or max(LEAST, BATCHES // clients)
            results.append(measure(preset, clients, args.rounds, steps))
            print(results[-1], flush=True)
    page = Page("crowd", "crowd")
    made = f"{page.made_by}, torch {page.setting['torch']}, grpcio {page.setting['grpcio']}; {os.cpu_count()} cores."
    page.save(args.results, ["# A crowd of clients on one server", made, NOTE, table(results)], {"results": results})


if __name__ == "__main__":
    main()
