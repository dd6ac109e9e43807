"""From raw runs to medians, ratios and a page of Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks.workloads import WORKLOADS

PHASES = {
    "batch": "pick the batch",
    "client_forward": "forward on the client",
    "encode": "encode, both sides",
    "wire": "wire: gRPC, loopback, waking threads",
    "queue_wait": "wait in the server's queue",
    "decode": "decode, both sides",
    "server_compute": "the server's step",
    "client_backward": "backward and step on the client",
}
TARGET = 0.85
TARGET_BYTES = 1.005
Sides = Mapping[str, Sequence[Mapping[str, Any]]]


def summarise(workload: str, steps: int, sides: Sides) -> dict[str, Any]:
    """Medians over the pairs. `ratio` is the median of each pair's ours / bare; bare is the fastest of its variants."""
    rates = {side: [run["steps_per_s"] for run in runs] for side, runs in sides.items()}
    bare = [side for side in rates if side.startswith("bare")]
    reference = max(bare, key=lambda side: median(rates[side]))
    ratios = {side: [ours / b for ours, b in zip(rates["ours"], rates[side], strict=True)] for side in bare}
    return {
        "workload": workload,
        "steps": steps,
        "pairs": len(rates["ours"]),
        "reference": reference,
        "steps_per_s": {side: median(values) for side, values in rates.items()},
        "ratios": ratios,
        "ratio": median(ratios[reference]),
        "phases_ms": {side: _phases(sides[side]) for side in (reference, "ours")},
        "wire_per_tensor_byte": {
            way: median(run[f"wire_per_tensor_byte_{way}"] for run in sides["ours"]) for way in ("up", "down")
        },
        "runs": {side: list(runs) for side, runs in sides.items()},
    }


def _phases(runs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Median ms of a step by phase; `rest` is what the step took beyond them."""
    measured = [run for run in runs if run["phases"]]
    if not measured:
        return {}
    phases = {name: median(run["phases"][name] for run in measured) for name in PHASES if name in measured[0]["phases"]}
    rest = median(1e3 / run["steps_per_s"] - sum(run["phases"].values()) for run in measured)
    return {**phases, "rest": rest}


def rates_table(results: Iterable[Mapping[str, Any]]) -> str:
    """Steps per second of everything that ran, and what part of each bare stream's ours reaches."""
    lines = [
        "| workload | side | steps/s, median | lowest | highest | ours of it, median (lowest to highest pair) |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for r in results:
        for side, rate in r["steps_per_s"].items():
            runs = [run["steps_per_s"] for run in r["runs"][side]]
            ratio = _ratio(r["ratios"][side]) if side in r["ratios"] else ""
            if side == r["reference"]:
                ratio = f"**{ratio}**, the reference"
            lines.append(f"| {r['workload']} | {side} | {rate:.1f} | {min(runs):.1f} | {max(runs):.1f} | {ratio} |")
    return "\n".join(lines)


def _ratio(ratios: Sequence[float]) -> str:
    return f"{median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"


def phases_table(result: Mapping[str, Any]) -> str:
    """Where a step's time goes, beside the reference."""
    bare, ours = result["phases_ms"][result["reference"]], result["phases_ms"]["ours"]
    if not ours:
        return "(no phases: every scrape came after the run's end)"

    def row(text: str, name: str) -> str:
        cells = [f"{side[name]:.3f}" if name in side else "" for side in (bare, ours)]
        return f"| {text} | {' | '.join(cells)} | {ours.get(name, 0.0) - bare.get(name, 0.0):+.3f} |"

    rest = "rest (ours: picking the batch too)"
    lines = [f"| {result['workload']}, ms a step | {result['reference']} | ours | more |", "|---|---:|---:|---:|"]
    lines += [row(text, name) for name, text in PHASES.items() if name in bare or name in ours]
    lines.append(row(rest, "rest"))
    total = [sum(side.values()) for side in (bare, ours)]
    lines.append(f"| sum | {total[0]:.3f} | {total[1]:.3f} | {total[1] - total[0]:+.3f} |")
    return "\n".join(lines)


def cost_table(results: Iterable[Mapping[str, Any]]) -> str:
    """CPU time and memory of both processes, beside the reference."""
    lines = [
        "| workload | side | server, CPU ms a step | client | server, MB at most | client |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for r in results:
        for side in (r["reference"], "ours"):
            runs = [run for run in r["runs"][side] if "cpu_ms" in run]
            numbers = (
                [
                    median(run[kind][process] for run in runs)
                    for kind in ("cpu_ms", "peak_mb")
                    for process in ("server", "client")
                ]
                if runs
                else []
            )
            lines.append(f"| {r['workload']} | {side} | {' | '.join(f'{n:.2f}' for n in numbers)} |")
    return "\n".join(lines)


def bytes_line(result: Mapping[str, Any]) -> str:
    """Wire bytes to tensor bytes."""
    w = result["wire_per_tensor_byte"]
    return f"{result['workload']}: activations {w['up']:.5f}, cut gradients {w['down']:.5f}"


def verdicts(results: Iterable[Mapping[str, Any]]) -> list[str]:
    """Each target, what was measured, and whether it was met."""
    lines = []
    for r in results:
        met = "met" if r["ratio"] >= TARGET else "NOT met"
        lines.append(f"{r['workload']}: {r['ratio']:.3f} of the bare stream's steps/s, wanted ≥ {TARGET}: {met}")
        if r["workload"] == "cnn":
            up = r["wire_per_tensor_byte"]["up"]
            met = "met" if up <= TARGET_BYTES else "NOT met"
            lines.append(f"cnn: {up:.5f} wire bytes a tensor byte of activations, wanted ≤ {TARGET_BYTES}: {met}")
    return lines


def markdown(command: str, results: Sequence[Mapping[str, Any]], where: Mapping[str, Any], note: str) -> str:
    """The page beside the raw numbers."""
    sizes = ", ".join(f"{r['workload']} {r['steps']}" for r in results)
    parts = [
        "# One training step against a bare gRPC stream",
        f"Made by `{command}` on {where['date']}: {where['cpu']} × {where['cpus']}, Python {where['python']}, "
        f"torch {where['torch']}, grpcio {where['grpcio']}; images: {where['images']}.",
        "One server and one client process on loopback, batch 64, SGD lr 0.05 momentum 0.9, one torch thread a process. "
        f"Steps a run: {sizes}, after as many to warm up. "
        f"Every pair runs all sides one after the other; medians over {results[0]['pairs']} pairs. {note}".rstrip(),
        "\n".join(f"- `{r['workload']}`: {WORKLOADS[r['workload']].text}" for r in results),
        "`plain` is the unsplit network in one process. `bare` is `benchmarks/bare_stream.py`: a grpc.aio stream of raw float32 "
        "bytes, torch on its event loop, each tensor one message, gRPC's default options; `bare-1MiB` cuts messages into pieces of "
        "1 MiB; `bare-tuned` sets HTTP/2 frames and windows that hold a whole message. The fastest of them is the reference. `plain` and `bare` pick rows from images normalised beforehand; ours normalises each batch. "
        "`ours` is `sl-server run` and `sl-client run`, with its checks, exactly-once delivery, metrics and digest log.",
        "\n".join(f"- {line}" for line in verdicts(results)),
        "## Steps per second",
        rates_table(results),
        "## Where a step's time goes",
        "Medians of means over the measured steps. Ours as `sl_step_seconds` of /metrics says.",
        *(phases_table(r) for r in results),
        "## CPU time and memory",
        "Of the two processes, user and system together; of the system's own, starting up included, the most memory that was resident.",
        cost_table(results),
        "## Wire bytes to tensor bytes",
        "Serialized gRPC messages with their 5-byte prefix, to the tensors as float32; labels are not in it.",
        "\n".join(f"- {bytes_line(r)}" for r in results),
    ]
    return "\n\n".join(parts) + "\n"
