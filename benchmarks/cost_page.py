"""From counted CPU seconds to medians with their spread, the page, and the sentences of docs/explanation/speed.md and targets.md."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from typing import Any

from benchmarks.awake import note
from benchmarks.processes import ROOT
from benchmarks.workloads import WORKLOADS

NUMBERS = Path(__file__).with_name("results") / "cost.json"
SPEED = ROOT / "docs" / "explanation" / "speed.md"
BEGIN, END = "<!-- bench-cost -->", "<!-- /bench-cost -->"
Run = Mapping[str, Any]  # of one host
Rows = Sequence[Mapping[str, Mapping[str, float]]]  # one a pair: the numbers of both sides


@dataclass(frozen=True, slots=True)
class Spread:
    """A median with its quartiles and extremes."""

    median: float
    low: float
    high: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """The quartiles are those of the sample itself: of nine values the third and the seventh."""
        found = sorted(values)
        low, middle, high = quantiles(found, n=4, method="inclusive") if len(found) > 1 else (found[0],) * 3
        return cls(middle, low, high, found[0], found[-1])

    def text(self, digits: int) -> str:
        """`median (quartiles)`."""
        return f"{self.median:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


def of_side(rows: Rows, side: str, number: str) -> Spread:
    """`server_ms`, `client_ms`, their sum `both_ms`, or `steps_per_s` of one side."""
    return Spread.of(_value(row[side], number) for row in rows)


def ratio(rows: Rows, number: str) -> Spread:
    """Ours of the bare stream's, pair by pair."""
    return Spread.of(_value(row["ours"], number) / _value(row["bare"], number) for row in rows)


def _value(one: Mapping[str, float], number: str) -> float:
    return one["server_ms"] + one["client_ms"] if number == "both_ms" else one[number]


def same_host(one: Run, other: Run) -> bool:
    """Whether two runs are of one kind of machine, as far as a process can tell."""
    return all(one[key] == other[key] for key in ("cpu", "cpus", "system"))


def host_of(run: Run) -> str:
    """The processor, how many cores the processes had of it, and the day."""
    return f"{run['cpu']} × {run['cores']} on {run['date']}"


NAMES = {
    "server_ms": ("server, CPU ms a step", 3),
    "client_ms": ("client, CPU ms a step", 3),
    "both_ms": ("both, CPU ms a step", 3),
    "steps_per_s": ("steps/s", 1),
}


def table(results: Iterable[Mapping[str, Any]]) -> str:
    """Medians with quartiles of both sides and of the pairs' ratios."""
    lines = [
        "| workload | | bare stream | ours | ours of it | pairs, lowest to highest |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for result in results:
        rows = result["pairs"]
        for number, (text, digits) in NAMES.items():
            sides = [of_side(rows, side, number).text(digits) for side in ("bare", "ours")]
            part = ratio(rows, number)
            lines.append(
                f"| `{result['workload']}` | {text} | {' | '.join(sides)} | **{part.median:.2f}** ({part.low:.2f} to {part.high:.2f}) "
                f"| {part.least:.2f} to {part.most:.2f} |"
            )
    return "\n".join(lines)


def section(run: Run) -> str:
    """One host's run, as Markdown."""
    load = " ".join(f"{one:.2f}" for one in run["load_before"])
    about = (
        f"Made by `{run['command']}` on {run['date']}: {run['cpu']}, {run['cores']} cores, {run['system']} {run['kernel']}, "
        f"Python {run['python']}, torch {run['torch']}, grpcio {run['grpcio']}; images: {run['images']}. Load before: {load}."
    )
    counted = ", ".join(f"{r['workload']} {r['steps']} in {len(r['pairs'])} pairs" for r in run["results"])
    return "\n\n".join(
        [
            f"## {run['cpu']} × {run['cores']}",
            about,
            f"Steps that count, after as many to warm up: {counted}. {note(run['kept_awake'])}".rstrip(),
            table(run["results"]),
        ]
    )


def page(hosts: Sequence[Run]) -> str:
    """Every host's run."""
    names = sorted({r["workload"] for run in hosts for r in run["results"]}, key=list(WORKLOADS).index)
    head = [
        "# CPU time a step, beside a bare gRPC stream",
        "User and system time of the server's and of the client's process, all threads, read from each process's CPU clock before and after "
        "the steps that count; medians over interleaved pairs, with quartiles. Batch 64, SGD lr 0.05 momentum 0.9, one torch thread a process. "
        "The bare stream is `benchmarks/bare_stream.py` with gRPC's default options: the same computation, raw bytes, and nothing else. "
        "Ours is `sl-server run` and `sl-client run`; its time holds all that a wave brings with it, the checkpoint at its end too.",
        "\n".join(f"- `{name}`: {WORKLOADS[name].text}" for name in names),
    ]
    return "\n\n".join([*head, *map(section, hosts)]) + "\n"


def hosts_of(path: Path = NUMBERS) -> list[Run]:
    """The runs of cost.json, none if there is no such file."""
    return list(json.loads(path.read_text())["hosts"]) if path.exists() else []


def rows_of(raw: Mapping[str, Any], workload: str) -> Rows:
    """One workload's pairs of the host that was measured last; raises LookupError."""
    found = [r["pairs"] for run in raw["hosts"] for r in run["results"] if r["workload"] == workload]
    return found[-1]  # type: ignore[no-any-return]


def statement(hosts: Sequence[Run]) -> str:
    """The text of speed.md and targets.md: a line for each workload and host."""
    if not hosts:
        return "CPU time a step beside the bare stream's, on several hosts: `make bench-cost`; no run of it is committed yet."
    lines = [
        "Median of a step's CPU time and of the pairs' steps/s, ours of the bare stream's, with quartiles "
        "([cost.md](benchmarks/results/cost.md), `make bench-cost`); on which host matters:",
        "",
        "| workload, 1 client | server's CPU time | client's | steps/s | on |",
        "|---|---:|---:|---:|---|",
    ]
    for run in hosts:
        for result in run["results"]:
            parts = [ratio(result["pairs"], number).text(2) for number in ("server_ms", "client_ms", "steps_per_s")]
            lines.append(f"| `{result['workload']}` | {' | '.join(parts)} | {host_of(run)} |")
    return "\n".join(lines)


def with_statement(text: str, said: str) -> str:
    """A page with the text between its two markers replaced; links lead from docs/explanation to benchmarks."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{SPEED.name} has no {BEGIN} … {END}")
    linked = said.replace("](benchmarks/", "](../../benchmarks/")
    return f"{before}{BEGIN}\n{linked}\n{END}{after}"


def state_in_speed() -> None:
    """Bring speed.md up to date with cost.json."""
    SPEED.write_text(with_statement(SPEED.read_text(), statement(hosts_of())))
