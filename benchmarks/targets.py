"""What was wanted of the system's speed, beside what was measured and what is committed; says which falls short.

python -m benchmarks.targets [--run [NAME…]]; `make bench` measures everything anew, two to three hours,
`make bench-table` prints what is committed, and
writes it into benchmarks/results/targets.md, and bench-cost's medians into docs/explanation/speed.md.

With --run the benchmarks write into build/bench, and the table shows their numbers beside the committed ones: what got slower is seen there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import cost_page
from benchmarks.processes import ROOT, module
from benchmarks.step import RESULTS

FRESH = ROOT / "build" / "bench"
PAGE = RESULTS / "targets.md"
NOT_PEERS = ("ours", "bare", "bare-tuned", "bare-1MiB", "plain", "raw-tcp")  # torch.distributed.rpc is one
RUNS = {  # a name of ours: the page, and the module and its arguments that make it
    "cost": ("cost",),
    "step-mlp": ("step", "--workload", "mlp", "--steps", "1000", "--pairs", "7"),
    "step-cnn": ("step", "--workload", "cnn", "--steps", "60"),
    "bandwidth": ("bandwidth",),
    "step-resnet18": ("step", "--workload", "resnet18"),
    "peers-mlp": ("peers", "--workload", "mlp"),
    "peers-cnn": ("peers", "--workload", "cnn"),
    "cohorts": ("cohorts",),
    "crowd": ("crowd", "--clients", "10", "64", "100", "1000", "--rounds", "3"),
    "stacked": ("stacked", "--pairs", "9"),
    "tls": ("tls",),
    "checkpoints": ("checkpoints",),
}


@dataclass(frozen=True, slots=True)
class Target:
    """One number that was wanted. `of` takes it out of what the page's benchmark wrote; it raises LookupError if it is not there."""

    what: str
    page: str
    of: Callable[[Any], float]
    least: float | None = None
    most: float | None = None

    def met(self, value: float) -> bool:
        """Whether it is good enough."""
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)

    @property
    def wanted(self) -> str:
        """As in the table."""
        return f"≥ {self.least:g}" if self.least is not None else f"≤ {self.most:g}"


def _only(raw: Any, **of: object) -> Any:
    (found,) = [r for r in raw["results"] if all(r[key] == value for key, value in of.items())] or [None]
    if found is None:
        raise KeyError(f"no result of {of}")
    return found


def _step(raw: Any) -> float:
    return float(raw["results"][0]["ratio"])


def _cost(workload: str) -> Callable[[Any], float]:
    """Steps/s of the bare stream's, of the host that bench-cost was run on last."""
    return lambda raw: cost_page.ratio(cost_page.rows_of(raw, workload), "steps_per_s").median


def _of_bare(workload: str, clients: int) -> Callable[[Any], float]:
    """Of the fastest variant of the bare stream."""

    def of(raw: Any) -> float:
        result = _only(raw, workload=workload, clients=clients)
        rates = {side: median(values) for side, values in result["steps_per_s"].items() if side.startswith("bare")}
        return float(median(result["ratios"][max(rates, key=lambda side: rates[side])]))

    return of


def _of_best_peer(workload: str, clients: int) -> Callable[[Any], float]:
    def of(raw: Any) -> float:
        ratios = _only(raw, workload=workload, clients=clients)["ratios"]
        return min(float(median(values)) for side, values in ratios.items() if side not in NOT_PEERS)

    return of


def _of_plain(raw: Any) -> float:
    rates = raw["results"][0]["runs"]
    pairs = zip(rates["ours"], rates["plain"], strict=True)
    return float(median(ours["steps_per_s"] / plain["steps_per_s"] for ours, plain in pairs))


def _crowd(preset: str, of: Callable[[dict[int, Any]], float]) -> Callable[[Any], float]:
    return lambda raw: of({r["clients"]: r for r in raw["results"] if r["preset"] == preset})


def _flat(by: dict[int, Any]) -> float:
    return float(by[1000]["cpu_ms_per_message"] / by[10]["cpu_ms_per_message"])


def _each_kb(by: dict[int, Any]) -> float:
    return float((by[1000]["peak_kb"] - by[10]["peak_kb"]) / 990)


def _targets() -> Iterator[Target]:
    yield Target("`mlp`, 1 client: steps/s of the bare stream's", "cost", _cost("mlp"), least=0.90)
    yield Target("`mlp`, 2 clients: the same", "peers-mlp", _of_bare("mlp", 2), least=0.90)
    for clients in (1, 2):
        text = f"`mlp`, clients: {clients}: steps/s of the fastest peer's"
        yield Target(text, "peers-mlp", _of_best_peer("mlp", clients), least=1.3)
    yield Target("`cnn`, 1 client: steps/s of the bare stream's", "cost", _cost("cnn"), least=1.0)
    yield Target("`cnn`, 2 clients: the same", "peers-cnn", _of_bare("cnn", 2), least=1.0)
    yield Target("`cnn`, 1 client: steps/s of the plain loop's", "step-cnn", _of_plain, least=0.83)
    for clients in (1, 2):
        text = f"`cnn`, clients: {clients}: steps/s of the fastest peer's"
        yield Target(text, "peers-cnn", _of_best_peer("cnn", clients), least=1.0)
    yield Target("ResNet-18, 16.8 MB each way: steps/s of the bare stream's", "step-resnet18", _step, least=0.85)
    yield Target(
        "16.8 MB without computation: MB/s of the bare stream's in 1 MiB pieces",
        "bandwidth",
        lambda raw: raw["medians"]["identity"],
        least=0.85,
    )
    yield Target(
        "the same with `float8` both ways: steps/s of identity's",
        "bandwidth",
        lambda raw: raw["medians"]["float8"],
        least=1.5,
    )
    yield Target(
        "a step over TLS: steps/s of plaintext's (`cnn`)", "tls", lambda raw: median(raw["ratios"]), least=0.85
    )
    yield Target(
        "64 clients `parallel`, batch 8: head's time of a plain loop's",
        "cohorts",
        lambda raw: _only(raw, head="plain", clients=64)["ratio"],
        most=1.05,
    )
    for preset in ("parallel", "splitfed_v1"):
        name = f"1,000 clients, `{preset}`"
        yield Target(
            f"{name}: p99 of p50 latency",
            "crowd",
            _crowd(preset, lambda by: by[1000]["p99_ms"] / by[1000]["p50_ms"]),
            most=5,
        )
        yield Target(f"{name}: server RSS, KB a client", "crowd", _crowd(preset, _each_kb), most=200)
        yield Target(f"{name}: CPU a message, of 10 clients'", "crowd", _crowd(preset, _flat), most=1.3)
    yield Target(
        "64 clients `parallel`: server CPU, ms a message, the (tiny) head's included",
        "crowd",
        _crowd("parallel", lambda by: by[64]["cpu_ms_per_message"]),
        most=0.4,
    )
    yield Target(
        "stacked simulation, 100 clients, digits `mlp`: batches/s of the plain simulator's",
        "stacked",
        lambda raw: _only(raw, model="mlp", clients=100)["ratio"],
        least=5,
    )
    yield Target(
        "`cnn`, 1.6 MB: wire bytes to tensor bytes",
        "step-cnn",
        lambda raw: raw["results"][0]["wire_per_tensor_byte"]["up"],
        most=1.003,
    )


TARGETS = tuple(_targets())


def value(target: Target, folder: Path) -> float | None:
    """What a folder's page has for it; None if it has nothing."""
    path = folder / f"{target.page}.json"
    try:
        return float(target.of(json.loads(path.read_text(encoding="utf-8"))))
    except (OSError, LookupError):
        return None


def table(fresh: Path | None) -> str:
    """Markdown: every target, with what was measured now, if it was, beside what is committed."""
    lines = [
        "| what | wanted | " + ("now | " if fresh else "") + "committed | |",
        "|---|---:|" + "---:|" * (2 + bool(fresh)),
    ]
    for target in TARGETS:
        committed, now = value(target, RESULTS), value(target, fresh) if fresh else None
        counts = now if now is not None else committed
        verdict = "not measured" if counts is None else "met" if target.met(counts) else "**falls short**"
        shown = [now, committed] if fresh else [committed]
        cells = [f"{one:.3f}" if one is not None else "" for one in shown]
        lines.append(f"| {target.what} | {target.wanted} | {' | '.join(cells)} | {verdict} |")
    return "\n".join(lines)


def page() -> str:
    """What is committed, as Markdown."""
    said = cost_page.statement(cost_page.hosts_of()).replace("benchmarks/results/", "")
    parts = [
        "# What was wanted, and what was measured",
        "Made by `make bench-table` from the pages beside it; where one page has several hosts, the last of them counts.",
        table(None),
        said,
    ]
    return "\n\n".join(parts) + "\n"


def run(name: str) -> None:
    """One benchmark anew; its page lies in FRESH then."""
    command, *arguments = RUNS[name]
    print(f"--- {name}", flush=True)
    done = subprocess.run(module(command, *arguments, "--results", str(FRESH)), cwd=ROOT, check=False)
    if done.returncode:
        print(f"{name}: ended with {done.returncode}; its numbers are missing below", flush=True)
        return


def main() -> None:
    """Measure what is asked for; print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.targets", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--run", nargs="*", choices=RUNS, metavar="NAME", help=f"of {', '.join(RUNS)}; none: all of them"
    )
    args = parser.parse_args()
    if args.run is not None:
        FRESH.mkdir(parents=True, exist_ok=True)
        try:
            for name in args.run or RUNS:
                run(name)
        except KeyboardInterrupt:
            sys.exit(130)
    if args.run is None:
        PAGE.write_text(page())
        cost_page.state_in_speed()
    print(table(None if args.run is None else FRESH))


if __name__ == "__main__":
    main()
