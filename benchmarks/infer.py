"""Measures split inference against sending the raw image: latency and bytes of a request, on loopback and over a link of 20 Mbit/s.

python -m benchmarks.infer [--seconds 2] [--mbit 20]; `make bench-infer`. It writes infer.json and infer.md into benchmarks/results.
The link needs Linux and root (see benchmarks.shaped); without, or with --mbit 0, that part is left out.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import shaped
from benchmarks.infer_sides import LEAST
from benchmarks.page import Page, parser_of
from benchmarks.processes import ROOT, module, script, started
from benchmarks.sides import START_S
from sl_common.config.run_config import RunConfig
from sl_server.simulation.simulation import Simulation
from sl_server.storage.export import export_run
from sl_server.storage.run_directory import RunDirectory
from sl_server.telemetry.ledger import Ledger

SIDES = {  # name -> (cut, codec for activations)
    "raw image": None,
    "after conv1, identity": ("conv1", "identity"),
    "after conv1, float8": ("conv1", "float8"),
    "after hidden, identity": ("hidden", "identity"),
    "after hidden, float8": ("hidden", "float8"),
}
BATCHES = (1, 64)
CROWD = 8
TOML = """
[run]
rounds = 1
[model]
name = "cnn"
cut = "{cut}"
input = [1, 28, 28]
classes = 10
[data]
name = "benchmarks.data:images"
batch_size = 64
[protocol]
preset = "splitfed_v2"
[client]
wave = {{ steps = 40 }}
[codec]
up = {{ kind = "{codec}" }}
"""
Result = dict[str, Any]


def run_directory(folder: Path, cut: str, codec: str) -> Path:
    """Of a short simulated run."""
    config, ledger = RunConfig.from_toml(TOML.format(cut=cut, codec=codec)), Ledger()
    out = folder / f"{cut}-{codec}"
    simulation = Simulation(config, count=ledger.count)
    directory = RunDirectory(out, config, ledger)
    for fact in simulation.run():
        directory.fact(fact, 0.0)
    directory.finish(simulation.coordinator, 0.0)
    return out


class Client:
    """A client process that measures jobs."""

    def __init__(self, within: Sequence[str] = ()) -> None:
        command = [*within, *module("infer_sides", "client")]
        self._popen = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def say(self, job: dict[str, Any]) -> None:
        """Hand a job over."""
        assert self._popen.stdin is not None
        self._popen.stdin.write(json.dumps(job) + "\n")
        self._popen.stdin.flush()

    def hear(self) -> Result:
        """Its result."""
        assert self._popen.stdout is not None
        line = self._popen.stdout.readline()
        if not line:
            sys.exit(f"error: a client ended with {self._popen.wait()}")
        found: Result = json.loads(line)
        return found

    def close(self) -> None:
        """It ends with its input."""
        assert self._popen.stdin is not None
        self._popen.stdin.close()
        self._popen.wait(20)


@contextlib.contextmanager
def clients(count: int, within: Sequence[str] = ()) -> Iterator[list[Client]]:
    """So many processes, gone when the block is left."""
    with contextlib.ExitStack() as stack:
        asking = [stack.enter_context(contextlib.closing(Client(within))) for _ in range(count)]
        for client in asking:
            client.hear()
        yield asking


@contextlib.contextmanager
def servers(folder: Path, host: str, within: Sequence[str] = ()) -> Iterator[dict[str, str]]:
    """All sides' servers; their addresses."""
    listen, running = f"{host}:0", {}
    with contextlib.ExitStack() as stack:
        for name, side in SIDES.items():
            if side is None:
                command = module(
                    "infer_sides", "raw-server", "--weights", folder / "model.safetensors", "--listen", listen
                )
            else:
                out = folder / "-".join(side)
                command = script("sl-server", "serve", out, "--listen", listen, "--insecure", "--json")
            running[name] = stack.enter_context(started([*within, *command]))
        yield {name: server.line("address", START_S)["address"] for name, server in running.items()}


def measure(asking: Sequence[Client], addresses: dict[str, str], seconds: float) -> dict[str, dict[int, Result]]:
    """Every side and batch size with all these clients at once."""
    results: dict[str, dict[int, Result]] = {name: {} for name in addresses}
    for batch in BATCHES:
        for name, address in addresses.items():
            job = {"kind": "raw" if SIDES[name] is None else "split", "address": address}
            for client in asking:
                client.say(job | {"batch": batch, "seconds": seconds})
            found = [client.hear() for client in asking]
            taken = sorted(s for one in found for s in one["taken"])
            results[name][batch] = {
                "requests": len(taken),
                "p50_ms": 1e3 * taken[len(taken) // 2],
                "p99_ms": 1e3 * taken[-(-99 * len(taken) // 100) - 1],
                "bytes_up": found[0]["up"],
                "bytes_down": found[0]["down"],
                "first": found[0]["first"],
            }
            check(results, name, batch)
            print(
                f"{len(asking)} client(s), {batch} image(s), {name}: {results[name][batch]['p50_ms']:.2f} ms",
                flush=True,
            )
    return results


def check(results: dict[str, dict[int, Result]], name: str, batch: int) -> None:
    """The split network must be the one that the raw image is sent to."""
    if SIDES[name] == ("conv1", "identity"):
        both = zip(results["raw image"][batch]["first"], results[name][batch]["first"], strict=True)
        if not all(math.isclose(a, b, abs_tol=1e-4) for a, b in both):
            sys.exit("error: split and whole network disagree")


def bytes_table(results: dict[str, dict[int, Result]]) -> str:
    """Markdown."""
    lines = [
        "| what is sent | bytes up, 1 image | 64 images | an image, of 64 | down, 1 | down, 64 |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, of in results.items():
        one, many = of[1], of[64]
        lines.append(
            f"| {name} | {one['bytes_up']:,.0f} | {many['bytes_up']:,.0f} | {many['bytes_up'] / 64:,.0f} | "
            f"{one['bytes_down']:,.0f} | {many['bytes_down']:,.0f} |"
        )
    return "\n".join(lines)


def latency_table(measured: dict[str, dict[str, dict[int, Result]]]) -> str:
    """Markdown: p50 / p99 of each setting's clients."""
    columns = [(setting, batch) for setting in measured for batch in BATCHES]
    lines = [
        "| p50 / p99, ms | " + " | ".join(f"{setting}, {batch} image(s)" for setting, batch in columns) + " |",
        "|---|" + "---:|" * len(columns),
    ]
    for name in SIDES:
        cells = [measured[setting][name][batch] for setting, batch in columns]
        lines.append(f"| {name} | " + " | ".join(f"{c['p50_ms']:.1f} / {c['p99_ms']:.1f}" for c in cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    parser = parser_of("infer", __doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--mbit", type=int, default=20, help="of the link; 0 leaves it out")
    args = parser.parse_args()
    measured = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        for side in filter(None, SIDES.values()):
            run_directory(folder, *side)
        export_run(folder / "conv1-identity", to=folder / "model.safetensors")
        with servers(folder, "127.0.0.1") as addresses, clients(CROWD) as asking:
            measured["1 client"] = measure(asking[:1], addresses, args.seconds)
            measured[f"{CROWD} clients"] = measure(asking, addresses, args.seconds)
        if args.mbit and os.geteuid() == 0:
            with (
                shaped.shaped(args.mbit),
                servers(folder, shaped.ADDRESS, shaped.within(shaped.SERVER)) as addresses,
                clients(1, shaped.within(shaped.CLIENT)) as asking,
            ):
                measured[f"1 client, {args.mbit} Mbit/s"] = measure(asking, addresses, args.seconds)
    page = Page("infer", "infer")
    sections = [
        "# Split inference against sending the raw image",
        f"{page.made_by}, torch {page.setting['torch']}; images: {page.setting['images']}.",
        "The cnn (Conv 1→32, Conv 32→64, Linear 3136→128, Linear 128→10), cut after its first block or before its last: the device computes "
        "up to there and sends activations (`sl-client predict`'s own code to `sl-server serve`). Raw image: 784 bytes each to a bare gRPC "
        "stream with the whole network behind it. From stored pixels to the scores of all classes, one request of each client under way, "
        f"{args.seconds:g} s each and at least {LEAST} requests of each client (of fewer than 100 the 99th percentile is the greatest); all "
        "clients and servers are processes of one machine, one torch thread each. Bytes are of gRPC messages with their 5-byte prefixes.",
        bytes_table(measured["1 client"]),
        latency_table(measured),
    ]
    page.save(args.results, sections, {"measured": measured})


if __name__ == "__main__":
    main()
