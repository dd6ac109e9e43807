"""Lets one server run for 2,000 rounds while clients join and leave, and says whether anything in its process grows.

python -m benchmarks.soak [--rounds 2000] [--clients 6] [--seed 0]; `make soak`. It writes soak.json and soak.md into benchmarks/results.
The server is `sl-server run` in a process of its own, with a probe beside it (benchmarks/soak_server.py); the clients are threads of another
process (benchmarks/soak_clients.py), with real streams.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.page import Page, parser_of
from benchmarks.processes import BenchmarkFailed, module, started

LIMIT_S = 3600.0
SETTLED = 0.25  # of the rounds: what is allocated at first use is there by then
CONFIG = """
[run]
name = "soak"
rounds = {rounds}
clients = 2
grace_s = 1
[model]
name = "mlp"
args = {{ hidden = [16] }}
[data]
name = "digits"
shards = {clients}
batch_size = 16
[protocol]
preset = "splitfed_v1"
[client]
wave = {{ steps = 2 }}
[eval]
every = 100
"""
# what is sampled: how it is called, and how much of it more at the end is nothing
THINGS = {
    "rss_kb": ("resident memory, kB", 2048.0),
    "fds": ("file descriptors", 1.0),
    "tasks": ("asyncio tasks", 1.0),
    "threads": ("threads", 1.0),
    "sessions": ("sessions", 1.0),
    "links": ("sessions with or without a stream", 1.0),
    "streams": ("streams", 1.0),
    "members": ("names in the roster", 1.0),
    "objects": ("objects that Python's collector tracks", 2000.0),
}


@dataclass(frozen=True, kw_only=True)
class Trend:
    """A straight line through one thing's samples, by least squares, from where the run had settled."""

    thing: str
    first: float  # where the line begins
    last: float  # and ends
    highest: float
    per_1000_rounds: float
    error: float  # standard error of that slope, samples taken as independent
    allowed: float

    @property
    def flat(self) -> bool:
        """It ends no higher than it began, but for noise or next to nothing."""
        return self.last - self.first <= self.allowed or self.per_1000_rounds <= 2 * self.error


def trend(samples: Sequence[dict[str, float]], thing: str) -> Trend:
    """Of the samples after the run has settled."""
    end = samples[-1]["round"]
    kept = [s for s in samples if SETTLED * end <= s["round"] < end]
    x = np.array([s["round"] / 1000 for s in kept])
    y = np.array([s[thing] for s in kept])
    (slope, base), covariance = np.polyfit(x, y, 1, cov=True)
    return Trend(
        thing=thing,
        first=float(base + slope * x[0]),
        last=float(base + slope * x[-1]),
        highest=float(y.max()),
        per_1000_rounds=float(slope),
        error=float(covariance[0, 0] ** 0.5),
        allowed=THINGS[thing][1],
    )


def soak(rounds: int, clients: int, seed: int) -> tuple[list[dict[str, float]], dict[str, Any], dict[str, Any]]:
    """Samples, what the clients did, the run's summary."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, ExitStack() as stack:
        toml, out, samples = Path(folder, "run.toml"), Path(folder, "out"), Path(folder, "samples.jsonl")
        toml.write_text(CONFIG.format(rounds=rounds, clients=clients))
        serve = module("soak_server", samples, 0.5, "run", toml, "--listen", "127.0.0.1:0", "--out", out, "--json")
        server = stack.enter_context(started(serve))
        address = server.line("address", 120)["address"]
        come = module("soak_clients", "--address", address, "--clients", clients, "--seed", seed)
        visits = stack.enter_context(started(come)).line("visits", LIMIT_S)["visits"]
        server.finish(120)
        found = [json.loads(line) for line in samples.read_text().splitlines()]
        return found, visits, json.loads((out / "summary.json").read_text())


def table(trends: Sequence[Trend]) -> str:
    """Markdown."""
    lines = [
        "| in the server's process | the line begins at | and ends at | highest | slope, per 1,000 rounds | verdict |",
        "|---|---:|---:|---:|---:|---|",
    ]
    lines += [
        f"| {THINGS[t.thing][0]} | {t.first:,.1f} | {t.last:,.1f} | {t.highest:,.0f} | "
        f"{t.per_1000_rounds:+,.2f} ± {t.error:,.2f} | {'flat' if t.flat else 'GROWS'} |"
        for t in trends
    ]
    return "\n".join(lines)


def main() -> None:
    """Run, fit, print, write; exit code 1 if anything grows."""
    parser = parser_of("soak", __doc__)
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=6, help="two of them stay")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        samples, visits, summary = soak(args.rounds, args.clients, args.seed)
    except BenchmarkFailed as error:
        sys.exit(f"error: {error}")
    if not summary["finished"]:
        sys.exit(f"error: the run did not finish: {summary['reason']}")
    trends = [trend(samples, thing) for thing in THINGS]
    page = Page("soak", "soak")
    sections = [
        "# 2,000 rounds while clients come and go" if args.rounds == 2000 else f"# {args.rounds:,} rounds",
        f"{page.made_by}, torch {page.setting['torch']}, grpcio {page.setting['grpcio']}; {os.cpu_count()} cores.",
        f"{args.rounds:,} rounds of `splitfed_v1` on a network of 64 → 16 | 16 → 10, two batches a client and round, a checkpoint after each "
        f"round, in {summary['seconds']:.0f} s. Of {args.clients} clients two stay; the others left {visits.get('leave', 0)} times with a word and "
        f"{visits.get('vanish', 0)} times without, lost their stream {visits.get('cut', 0)} times, and came again: "
        f"{visits.get('lives', 0)} lives ended.",
        f"Sampled every half second ({len(samples)} samples); a straight line by least squares through those after the first "
        f"{SETTLED:.0%} of the rounds. Flat: the line ends no higher than it began, but for two standard errors of its slope or next to nothing "
        f"({', '.join(f'{name}: {allowed:g}' for name, allowed in dict(THINGS.values()).items())}).",
        table(trends),
    ]
    raw = {"rounds": args.rounds, "visits": visits, "summary": summary, "trends": [asdict(t) for t in trends]}
    page.save(args.results, sections, raw | {"samples": samples})
    if not all(t.flat for t in trends):
        sys.exit("error: something grows")


if __name__ == "__main__":
    main()
