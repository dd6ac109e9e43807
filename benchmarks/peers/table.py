"""From raw runs to the page of benchmarks.peers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks.page import Page
from benchmarks.peers.catalog import Peer
from benchmarks.workloads import WORKLOADS

Runs = Mapping[str, Sequence[Mapping[str, Any]]]
ALIKE = 1e-6


def summarise(workload: str, clients: int, steps: int, runs: Runs, not_run: Mapping[str, str]) -> dict[str, Any]:
    """`ratios`: ours ÷ the side, pair by pair, where both ran."""
    rates = {side: [run["steps_per_s"] for run in found] for side, found in runs.items() if side not in not_run}
    ratios = {side: [a / b for a, b in zip(rates["ours"], values, strict=True)] for side, values in rates.items()}
    return {
        "workload": workload,
        "clients": clients,
        "steps": steps,
        "steps_per_s": rates,
        "ratios": {side: values for side, values in ratios.items() if side != "ours"},
        "not_run": dict(not_run),
        "runs": {side: list(found) for side, found in runs.items()},
    }


def rates_table(result: Mapping[str, Any]) -> str:
    """Markdown, the fastest first; at its end what did not run."""
    lines = [
        f"| {result['workload']}, clients: {result['clients']} | steps/s per client, median | lowest | highest | "
        "ours ÷ it, median (lowest to highest pair) |",
        "|---|---:|---:|---:|---:|",
    ]
    rates = result["steps_per_s"]
    for side in sorted(rates, key=lambda side: -median(rates[side])):
        values, ratios = rates[side], result["ratios"].get(side)
        ratio = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else ""
        name = "**ours**" if side == "ours" else side
        lines.append(f"| {name} | {median(values):.1f} | {min(values):.1f} | {max(values):.1f} | {ratio} |")
    lines += [f"| {side} | not run: {reason} | | | |" for side, reason in result["not_run"].items()]
    return "\n".join(lines)


def same_work(result: Mapping[str, Any]) -> str:
    """Whether the peers' only clients ended with the same lower segment; with several clients the order of turns decides."""
    ends = {
        side: run["weights"][0]
        for side, runs in result["runs"].items()
        for run in runs
        if len(run.get("weights", ())) == 1
    }
    if len(ends) < 2:
        return ""
    reference = next(iter(ends.values()))
    odd = [side for side, end in ends.items() if abs(end / reference - 1) > ALIKE]
    said = f"NOT alike: {', '.join(odd)}" if odd else f"alike to {ALIKE:g}"
    return f"Sum of squares of the client's trained weights, {', '.join(ends)}: {said}."


def versions(results: Sequence[Mapping[str, Any]]) -> str:
    """What was installed of each peer's package."""
    found = {
        side: run["version"] for r in results for side, runs in r["runs"].items() for run in runs if "version" in run
    }
    return ", ".join(f"{side} {version}" for side, version in found.items())


def sections(page: Page, results: Sequence[Mapping[str, Any]], peers: Sequence[Peer], note: str) -> list[str]:
    """The page."""
    sizes = ", ".join(dict.fromkeys(f"{r['workload']} {r['steps']}" for r in results))
    pairs = max(len(values) for r in results for values in r["steps_per_s"].values())
    return [
        "# The same step over other people's systems",
        f"{page.made_by}, Python {page.setting['python']}, torch {page.setting['torch']}, grpcio {page.setting['grpcio']}; images: "
        f"{page.setting['images']}. Peers: {versions(results)}.",
        "One server and so many client processes on loopback, batch 64, SGD lr 0.05 momentum 0.9, one torch thread a process. "
        f"Steps a run: {sizes}, after as many to warm up. Every pair runs all sides one after the other; medians over {pairs} pairs. "
        "With several clients all train one head at once and the clock runs from the first that begins to count to the last that ends. "
        f"The head takes one step on each batch as it comes, on every side (ours: `parallel` with `barrier = each`). {note}".rstrip(),
        "\n".join(f"- `{name}`: {WORKLOADS[name].text}" for name in dict.fromkeys(r["workload"] for r in results)),
        "\n".join(
            [
                "- `ours`: `sl-server run` and `sl-client run`, with checks, exactly-once delivery, metrics and digest log",
                "- `bare`: `benchmarks/bare_stream.py`, a grpc.aio stream of raw bytes, gRPC's default options; `bare-tuned`: with HTTP/2 "
                "frames and windows that hold a whole message",
                "- `plain`: the unsplit network in one process",
                *(f"- `{peer.name}`: {peer.text}" for peer in peers),
            ]
        ),
        *(part for r in results for part in (rates_table(r), same_work(r)) if part),
    ]
