"""Measures what checkpoints cost a run, and how long a killed server takes to be training again.

python -m benchmarks.checkpoints [--pairs 4] [--rounds 3] [--steps 80] [--kills 3]; `make bench-checkpoints`. It writes checkpoints.json
and checkpoints.md into benchmarks/results. Server and clients are processes of the installed commands.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import sides
from benchmarks.page import Page, parser_of
from benchmarks.processes import BenchmarkFailed, Line, Process, script, started
from benchmarks.workloads import BATCH, WORKLOADS

CLIENTS = 2
LIMIT_S = 300.0
CNN = WORKLOADS["cnn"]
_STEPS = re.compile(r"^sl_steps_total (\S+)$", re.MULTILINE)
_CHECKPOINTS = tuple(re.compile(rf"^sl_checkpoint_seconds_{what} (\S+)", re.MULTILINE) for what in ("sum", "count"))
NOTE = (
    f"`cnn` ({CNN.text}), SGD with momentum, batch {BATCH}, {CLIENTS} client processes in lock-step (`parallel`), one torch thread each. With "
    'checkpoints: `run.checkpoints = "round"`, synced to disk, and the clients\' snapshots on disk as well (`--state DIR`). Without: '
    '`"never"`, no `--state`.'
)


class Heard:
    """When each event of a process came, by this process's clock."""

    def __init__(self) -> None:
        self.at: list[tuple[float, Line]] = []

    def __call__(self, line: Line) -> None:
        """One line."""
        self.at.append((time.monotonic(), line))

    def first(self, event: str, since: float) -> float:
        """Seconds from `since` to the first such event after it."""
        return next(at - since for at, line in list(self.at) if at >= since and line.get("event") == event)

    def count(self, event: str) -> int:
        """So many came."""
        return sum(line.get("event") == event for _, line in list(self.at))


class Run:
    """A server and its clients."""

    def __init__(self, stack: ExitStack, folder: Path, rounds: int, steps: int, checkpoints: str) -> None:
        self._stack, self._folder, self.out = stack, folder, folder / "out"
        self._durable = checkpoints != "never"
        toml = folder / "run.toml"
        text = sides.config(CNN, steps, CLIENTS).replace(
            "rounds = 2\n", f'rounds = {rounds}\ncheckpoints = "{checkpoints}"\n'
        )
        toml.write_text(text)
        self.heard = Heard()
        self.server = self._serve("run", toml, "--listen", "127.0.0.1:0", "--out", self.out)
        self._hear_server()
        self.address = self.server_said["address"]
        self.clients_heard = [Heard() for _ in range(CLIENTS)]
        self.clients = [self._client(number, heard) for number, heard in enumerate(self.clients_heard)]

    def _serve(self, *words: object) -> Process:
        command = script("sl-server", *words, "--metrics", "127.0.0.1:0", "--json")
        return self._stack.enter_context(started(command, self.heard))

    def _hear_server(self) -> None:
        """Its two addresses, whichever it says first."""
        self.server_said: Line = {}
        while not {"address", "port"} <= self.server_said.keys():
            self.server_said |= self.server.line("event", LIMIT_S)

    def _client(self, number: int, heard: Heard) -> Process:
        to = ("--server", self.address, "--id", f"c{number}", "--allow", "benchmarks", "--json")
        state = ("--state", self._folder / "state") if self._durable else ()
        return self._stack.enter_context(started(script("sl-client", "run", *to, *state), heard))

    def wait_for_rounds(self, number: int) -> None:
        """Until the server has said that so many are over."""
        until = time.monotonic() + LIMIT_S
        while self.heard.count("round") < number:
            if time.monotonic() > until:
                raise BenchmarkFailed(f"no {number} rounds within {LIMIT_S:g} s")
            time.sleep(0.01)

    def metrics(self) -> str:
        """What the server says of itself now."""
        port = self.server_said["port"]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            return str(answer.read(), "utf-8")

    def resume(self) -> float:
        """Kill the server with no warning, and start it again at once: when, by this process's clock."""
        self.server.kill()
        began = time.monotonic()
        self.server = self._serve("run", "--resume", self.out, "--listen", self.address)
        self._hear_server()
        return began

    def finish(self) -> list[Line]:
        """Wait for the end: what the run's directory says."""
        for process in (*self.clients, self.server):
            process.finish(LIMIT_S)
        return [json.loads(line) for line in (self.out / "metrics.jsonl").read_text().splitlines()]


def seconds_of_rounds(checkpoints: str, rounds: int, steps: int) -> tuple[list[float], float]:
    """From the end of each round to that of the next, by the server's clock; the first round warms up. And of one checkpoint, by its own."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, ExitStack() as stack:
        run = Run(stack, Path(folder), rounds + 1, steps, checkpoints)
        run.wait_for_rounds(rounds)
        text = run.metrics()
        lines = run.finish()
        kept = len(list(Path(folder, "out").glob("checkpoint-*")))
    if bool(kept) != (checkpoints != "never"):
        raise BenchmarkFailed(f"{kept} checkpoints with run.checkpoints = {checkpoints!r}")
    ends = [line["seconds"] for line in lines if line["event"] == "round"]
    taken, saved = (float(found[1]) if (found := one.search(text)) else 0.0 for one in _CHECKPOINTS)
    return [after - before for before, after in pairwise(ends)], taken / max(saved, 1.0)


def first_batch(run: Run, began: float) -> float:
    """Seconds until the new server's counter of trained batches is not 0 any more."""
    while time.monotonic() < began + LIMIT_S:
        found = _STEPS.search(run.metrics())
        if found and float(found[1]):
            return time.monotonic() - began
        time.sleep(0.01)
    raise BenchmarkFailed("the resumed server trains nothing")


def recoveries(kills: int, steps: int) -> list[dict[str, float]]:
    """Seconds from each restart to the server's port, to all clients' return, to the first batch trained."""
    found = []
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, ExitStack() as stack:
        run = Run(stack, Path(folder), kills + 1, steps, "round")
        for kill in range(kills):
            run.wait_for_rounds(kill + 1)
            time.sleep(0.5)  # within the wave that will be lost
            began = run.resume()
            trained = first_batch(run, began)
            found.append(
                {
                    "port": run.heard.first("listening", began),
                    "clients": max(heard.first("joined", began) for heard in run.clients_heard),
                    "trained": trained,
                }
            )
        run.finish()
    return found


def imports() -> dict[str, float]:
    """Seconds that a process takes to import torch, and to import all that a server is, torch included."""
    found = {}
    for name, code in (
        ("torch", "import torch"),
        ("server", "import sl_server.cli.application, sl_server.training.process"),
    ):
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", code], check=True)
        found[name] = time.monotonic() - began
    return found


def table(found: Sequence[Mapping[str, float]]) -> str:
    """Markdown."""
    lines = [
        "| restart | the port is open after, s | all clients are back after, s | the first batch is trained after, s | from the open port on, s |",
        "|---:|---:|---:|---:|---:|",
    ]
    for number, one in enumerate(found, 1):
        cells = (one["port"], one["clients"], one["trained"], one["trained"] - one["port"])
        lines.append(f"| {number} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    parser = parser_of("checkpoints", __doc__)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3, help="of a run that count; one more warms up")
    parser.add_argument("--steps", type=int, default=80, help="of a client in a round")
    parser.add_argument("--kills", type=int, default=3)
    args = parser.parse_args()
    runs: dict[str, list[float]] = {"round": [], "never": []}
    each: list[float] = []  # seconds of one checkpoint
    raw: dict[str, Any] = {}
    try:
        for pair in range(args.pairs):
            for which in list(runs) if pair % 2 else list(runs)[::-1]:  # neither is always the first
                rounds, checkpoint = seconds_of_rounds(which, args.rounds, args.steps)
                runs[which].append(median(rounds))
                if which == "round":
                    each.append(checkpoint)
            print({which: round(found[-1], 3) for which, found in runs.items()}, flush=True)
        raw = {"imports": imports(), "recoveries": recoveries(args.kills, args.steps) if args.kills else []}
    except BenchmarkFailed as error:
        sys.exit(f"error: {error}")
    page = Page("checkpoints", "checkpoints")
    ratios = [kept / never for kept, never in zip(runs["round"], runs["never"], strict=True)]
    sections = [
        "# What checkpoints cost, and what they give back",
        f"{page.made_by}, torch {page.setting['torch']}, grpcio {page.setting['grpcio']}; images: {page.setting['images']}.",
        NOTE,
    ]
    if ratios:
        sections.append(
            f"A round with a checkpoint takes {median(ratios):.3f} times as long as one without (pairs from {min(ratios):.3f} to {max(ratios):.3f}; "
            f"{args.pairs} interleaved pairs of runs, each the median of {args.rounds} rounds of {args.steps} steps; a round without takes "
            f"{median(runs['never']):.1f} s). The server itself stands still for {1e3 * median(each):.0f} ms in each checkpoint, "
            f"{median(each) / median(runs['never']):.2%} of a round; what the pairs say beyond that is their clients' snapshots and this machine's noise."
        )
    if raw["recoveries"]:
        sections.append(
            "A server is killed (SIGKILL) half a second into a wave and started again at once with `--resume`. All that is left to do after the "
            "first batch is the lost wave. A process of this Python takes "
            f"{raw['imports']['torch']:.2f} s to import torch alone, and {raw['imports']['server']:.2f} s for all that a server is."
        )
        sections.append(table(raw["recoveries"]))
    page.save(
        args.results, sections, {"seconds_of_a_round": runs, "seconds_of_a_checkpoint": each, "ratios": ratios, **raw}
    )


if __name__ == "__main__":
    main()
