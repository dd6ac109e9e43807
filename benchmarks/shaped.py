"""Measures a training step of the cnn over a link of 20 Mbit/s, with and without codecs, beside what the bytes alone would give.

python -m benchmarks.shaped [--mbit 20] [--runs 3] [--steps 10]; `make bench-link`. Linux, as root: two network namespaces joined by a
veth pair whose both ends are shaped by tbf. It writes link.json and link.md into benchmarks/results and removes the namespaces.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.page import Page, parser_of
from benchmarks.processes import script, started
from benchmarks.sides import START_S, config, second_round_seconds
from benchmarks.workloads import WORKLOADS
from sl_common.config.run_config import RunConfig
from sl_server.preflight.check import inspect

LINKS = {
    "identity": "",
    "float16 both ways": 'up = { kind = "float16" }\ndown = { kind = "float16" }',
    "float8 both ways": 'up = { kind = "float8" }\ndown = { kind = "float8" }',
    "mask r=0.99 b=2 up": 'up = { kind = "mask", r = 0.99, b = 2 }',
    "mask r=0.99 b=2 up, float8 down": 'up = { kind = "mask", r = 0.99, b = 2 }\ndown = { kind = "float8" }',
}
SERVER, CLIENT = f"cutlayer-s{os.getpid()}", f"cutlayer-c{os.getpid()}"
ADDRESS = "10.201.37.1"


def _ip(*args: str) -> None:
    subprocess.run(["ip", *args], check=True)


@contextlib.contextmanager
def shaped(mbit: int) -> Iterator[None]:
    """Two namespaces with a shaped link between them."""
    try:
        for name in (SERVER, CLIENT):
            _ip("netns", "add", name)
        _ip("link", "add", "sl0", "netns", SERVER, "type", "veth", "peer", "name", "sl0", "netns", CLIENT)
        for name, address in ((SERVER, ADDRESS), (CLIENT, "10.201.37.2")):
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", "sl0")
            _ip("-n", name, "link", "set", "sl0", "up")
            _ip("-n", name, "link", "set", "lo", "up")
            shape = f"tc qdisc add dev sl0 root tbf rate {mbit}mbit burst 32kb latency 400ms"
            _ip("netns", "exec", name, *shape.split())
        yield
    finally:
        for name in (SERVER, CLIENT):
            subprocess.run(["ip", "netns", "del", name], check=False, stderr=subprocess.DEVNULL)


def step_seconds(link: str, steps: int) -> float:
    """One run: mean seconds of a step in its second round. The evaluation that would follow is not waited for."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        toml = Path(folder, "run.toml")
        toml.write_text(config(WORKLOADS["cnn"], steps) + f"[codec]\n{link}\n")
        listen = ("--listen", f"{ADDRESS}:0", "--insecure", "--out", Path(folder, "out"), "--json")
        with started([*within(SERVER), *script("sl-server", "run", toml, *listen)]) as server:
            address = server.line("address", START_S)["address"]
            join = ("--server", address, "--insecure", "--allow", "benchmarks", "--json")
            with started([*within(CLIENT), *script("sl-client", "run", *join)]):
                while server.line("round", START_S + 10.0 * steps)["round"] != 2:
                    pass
                return second_round_seconds(Path(folder, "out")) / steps


def within(namespace: str) -> list[str]:
    """What goes before a command that is to run there."""
    return ["ip", "netns", "exec", namespace]


def step_bytes(link: str) -> int:
    """Wire bytes of a step, both ways, as `sl-server check` says."""
    report = inspect(RunConfig.from_toml(config(WORKLOADS["cnn"], 1) + f"[codec]\n{link}\n"))
    own = next(cut for cut in report.cuts if cut.cut == report.chosen)
    return own.up.wire + own.down.wire


def table(results: dict[str, dict[str, Any]], mbit: int) -> str:
    """Markdown."""
    plain = results["identity"]
    lines = [
        f"| codec | bytes a step | bytes: less by | s a step at {mbit} Mbit/s | bytes alone would take | faster by |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, r in results.items():
        ideal = 8 * r["bytes"] / mbit / 1e6
        lines.append(
            f"| {name} | {r['bytes']:,} | {plain['bytes'] / r['bytes']:.2f}× | {r['seconds']:.3f} | {ideal:.3f} | "
            f"{plain['seconds'] / r['seconds']:.2f}× |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    parser = parser_of("shaped", __doc__)
    parser.add_argument("--mbit", type=int, default=20)
    parser.add_argument("--runs", type=int, default=3, help="of each codec, interleaved")
    parser.add_argument("--steps", type=int, default=10, help="of a run that count; as many warm up")
    args = parser.parse_args()
    taken: dict[str, list[float]] = {name: [] for name in LINKS}
    with shaped(args.mbit):
        for number in range(args.runs):
            for name, link in LINKS.items():
                taken[name].append(step_seconds(link, args.steps))
            print(
                f"{number + 1}/{args.runs}: " + ", ".join(f"{name} {s[-1]:.3f} s" for name, s in taken.items()),
                flush=True,
            )
    results = {
        name: {"bytes": step_bytes(link), "seconds": statistics.median(taken[name]), "runs": taken[name]}
        for name, link in LINKS.items()
    }
    page = Page("shaped", "link")
    sections = [
        "# A step over a slow link",
        f"{page.made_by}, torch {page.setting['torch']}; images: {page.setting['images']}.",
        "The cnn cut after its first block, batch 64, one client, lock-step: activations go up, then the gradient comes down. "
        f"Medians of {args.runs} interleaved runs of {args.steps} steps after as many to warm up. Beyond the bytes a step "
        "computes and waits for the link's own latency.",
        table(results, args.mbit),
    ]
    page.save(args.results, sections, {"results": results})


if __name__ == "__main__":
    main()
