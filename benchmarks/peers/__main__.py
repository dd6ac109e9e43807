"""Measures our system against other people's that do the same work: interleaved, each in processes of its own.

python -m benchmarks.peers [--only NAME…] [--workload mlp|cnn|all] [--clients 1 2] [--pairs 5] [--steps N]; `make bench-peers`.

First `python -m benchmarks.peers.install`. All of it takes an hour or two. It writes peers.json, peers.md and peers.png into
benchmarks/results, or peers-mlp.json and so on if one workload is asked for. A peer that is not installed or
fails is a line that says so.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import sides
from benchmarks.awake import add_option, awake, note
from benchmarks.page import Page, parser_of
from benchmarks.peers import table
from benchmarks.peers.catalog import FOLDER, PEERS, STEPS, Peer
from benchmarks.plot import rates
from benchmarks.processes import BenchmarkFailed, started
from benchmarks.workloads import WORKLOADS, Workload, chosen, name_of

MARK = "CUTLAYER_PEERS_RUN"  # in the environment of every process that a peer starts
Once = Callable[[], sides.Result]


class NotRun(Exception):
    """A peer that gave no number; the text is for the table."""


def once(peer: Peer, workload: Workload, steps: int, clients: int) -> sides.Result:
    """One run of a peer. Raises NotRun."""
    if peer.clients is not None and clients > peer.clients:
        raise NotRun(f"{peer.clients} client is all it supports")
    if not peer.python.exists():
        raise NotRun("not installed (python -m benchmarks.peers.install)")
    run = ("--workload", workload.name, "--steps", str(steps), "--clients", str(clients))
    command = [str(peer.python), "-m", f"benchmarks.peers.{peer.script}", *run, *peer.args]
    log = FOLDER / "logs" / f"{peer.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        with log.open("w") as errors, started(command, stderr=errors) as process:
            return process.line("steps_per_s", 2 * sides.limit_s(steps))
    except BenchmarkFailed as error:
        raise NotRun(f"{_reason(log) or error} ({log.relative_to(FOLDER.parent.parent)})") from error
    finally:
        _sweep()


def _reason(log: Path) -> str:
    """The first exception that a process of the run did not catch."""
    lines = log.read_text(errors="replace").splitlines()
    traces = [number for number, line in enumerate(lines) if line.startswith("Traceback")]
    after = (line for line in lines[traces[0] + 1 :] if not line.startswith(" ")) if traces else iter(())
    return next(after, "")[:200]


def _sweep() -> None:
    """End what a run left behind: only what carries this process's mark (Linux)."""
    mark = f"{MARK}={os.environ[MARK]}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int(folder.name) != os.getpid() and mark in (folder / "environ").read_bytes().split(b"\0"):
                os.kill(int(folder.name), signal.SIGKILL)
        except OSError:
            continue  # it has ended, or is not ours


def measure(workload: Workload, clients: int, steps: int, pairs: int, peers: list[Peer]) -> dict[str, Any]:
    """All sides in turn, `pairs` times; a side that fails once is not tried again."""
    run: dict[str, Once] = {
        "ours": partial(sides.ours, workload, steps, clients=clients),
        "bare": partial(sides.bare, workload, steps, clients=clients),
        "bare-tuned": partial(sides.bare, workload, steps, clients=clients, tuned=True),
        **{peer.name: partial(once, peer, workload, steps, clients) for peer in peers},
    }
    if clients == 1:
        run["plain"] = partial(sides.plain, workload, steps)
    runs: dict[str, list[sides.Result]] = {side: [] for side in run}
    not_run: dict[str, str] = {}
    for pair in range(pairs):
        for side in [side for side in run if side not in not_run]:
            try:
                runs[side].append(run[side]())
            except NotRun as error:
                not_run[side] = str(error)
        rates = [f"{side} {found[-1]['steps_per_s']:.1f}" for side, found in runs.items() if side not in not_run]
        print(f"{workload.name}, {clients} client(s), {pair + 1}/{pairs}: {', '.join(rates)} steps/s", flush=True)
    return table.summarise(workload.name, clients, steps, runs, not_run)


def _parse() -> argparse.Namespace:
    parser = parser_of("peers", __doc__)
    parser.add_argument("--only", nargs="+", choices=PEERS, default=list(PEERS), metavar="NAME", help=", ".join(PEERS))
    parser.add_argument("--workload", choices=(*WORKLOADS, "all"), default="all")
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--pairs", type=int, default=5, help="how often each side runs")
    add_option(parser)
    parser.add_argument("--steps", type=int, help="of one run, by default 300 for mlp and 40 for cnn; as many warm up")
    return parser.parse_args()


def main() -> None:
    """Measure, print, write; no process outlives it."""
    args = _parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds the blocks that end the processes
    os.environ[MARK] = str(os.getpid())
    peers = [PEERS[name] for name in args.only]
    try:
        with awake(not args.asleep):
            results = [
                measure(workload, clients, args.steps or STEPS[workload.name], args.pairs, peers)
                for workload in chosen(args.workload)
                for clients in args.clients
            ]
    except BenchmarkFailed as error:
        sys.exit(f"error: {error}")
    name = name_of("peers", args.workload)
    page = Page("peers", name)
    sections = table.sections(page, results, peers, note(not args.asleep))
    page.save(args.results, [*sections, f"![steps/s of every side]({name}.png)"], {"results": results})
    rates(results, args.results / f"{name}.png")


if __name__ == "__main__":
    main()
