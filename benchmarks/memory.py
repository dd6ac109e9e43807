"""Measures a client process: its memory against that of `import torch`, and how soon after importing torch its first step is done.

python -m benchmarks.memory [--starts 5]; `make bench-memory`. Real servers and clients over loopback, one of four clients is measured.
Memory is the high-water mark of the resident set, as the kernel counts it. It writes memory.json and memory.md into benchmarks/results.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import struct
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.page import Page, parser_of
from benchmarks.processes import Process, module, script, started
from sl_client.data.cifar import CIFAR10
from sl_common.config.run_config import RunConfig
from sl_common.network.footprint import FACTOR, Footprint, footprint_of
from sl_common.network.network import Network

MB = 1e6
ALLOWED_MB = 40  # beyond torch, the segment and FACTOR × the batch's activations
ALLOWED_S = 3.0  # from torch's import to the end of the first step
LIMIT_S = 240.0
CLIENTS = 4
STEPS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """One network at one cut, and the data it is fed."""

    title: str
    model: str
    cut: str
    data: str

    def toml(self, *, clients: int, steps: int) -> str:
        """Two rounds of `steps` batches of 64; nothing is evaluated but at the end."""
        return f"""
[run]
name = "memory"
rounds = 2
clients = {clients}
[model]
name = "{self.model}"
cut = "{self.cut}"
[data]
name = "{self.data}"
batch_size = 64
[protocol]
preset = "splitfed_v2"
[client]
wave = {{ steps = {steps} }}
[eval]
every = 0
samples = 256
"""


WORKLOADS = (
    Workload(title="cnn after conv1", model="cnn", cut="conv1", data="fashion-mnist"),
    Workload(title="ResNet-18 after layer2", model="resnet18", cut="layer2_1", data="cifar10"),
)


def _pixels(count: int, width: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, width), np.uint8)


def write_fashion_mnist(folder: Path) -> None:
    """Random pixels in files of its size and format, compressed as Debian's package has them."""
    for name, count in (("train", 60_000), ("t10k", 10_000)):
        for kind, shape in (("images-idx3", (count, 28, 28)), ("labels-idx1", (count,))):
            body = _pixels(count, 784) if len(shape) == 3 else np.arange(count, dtype=np.uint8) % 10
            header = struct.pack(f">I{len(shape)}I", 0x0800 | len(shape), *shape)
            (folder / f"{name}-{kind}-ubyte.gz").write_bytes(gzip.compress(header + body.tobytes(), 1))


def write_cifar10(folder: Path) -> None:
    """The same for CIFAR-10's binary version."""
    for name in (*CIFAR10.binary[0], *CIFAR10.binary[1]):
        records = np.column_stack([np.arange(10_000, dtype=np.uint8) % 10, _pixels(10_000, 3072)])
        (folder / name).write_bytes(records.tobytes())


FILES = {"fashion-mnist": (write_fashion_mnist, (1, 28, 28)), "cifar10": (write_cifar10, (3, 32, 32))}


def torch_alone() -> tuple[float, float]:
    """A process that imports torch and nothing else: its MB, and the seconds until then."""
    began = time.monotonic()
    with started([sys.executable, "-c", IMPORT]) as process:
        process.line("imported", LIMIT_S)
        took = time.monotonic() - began
        return _mb(process.peak_kb()), took


def plain(workload: Workload) -> float:
    """MB at most of a process that trains the same blocks on random batches with torch alone: no data, no network, no server."""
    with started(module("plain_blocks", workload.model, workload.cut, STEPS, *FILES[workload.data][1])) as process:
        process.line("trained", LIMIT_S)
        return _mb(process.peak_kb())


def _mb(kb: int) -> float:
    return kb * 1024 / MB


IMPORT = "import torch; print('{\"imported\": true}', flush=True); import time; time.sleep(30)"


@contextlib.contextmanager
def serving(toml: Path, out: Path):
    """A server that listens: its address."""
    with started(script("sl-server", "run", toml, "--listen", "127.0.0.1:0", "--out", out, "--json")) as server:
        yield server.line("address", LIMIT_S)["address"]


def client(address: str, data: Path) -> list[str]:
    """Its command."""
    return script("sl-client", "run", "--server", address, "--data", data, "--json")


def said(process: Process, event: str) -> None:
    """Wait until it says so."""
    while process.line("event", LIMIT_S)["event"] != event:
        pass


def memory(workload: Workload, data: Path) -> float:
    """MB at most of one of four clients, over both rounds and the evaluation."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, contextlib.ExitStack() as stack:
        toml = Path(folder, "run.toml")
        toml.write_text(workload.toml(clients=CLIENTS, steps=STEPS))
        address = stack.enter_context(serving(toml, Path(folder, "out")))
        running = [stack.enter_context(started(client(address, data))) for _ in range(CLIENTS)]
        peak = 0
        while running[0].line("event", LIMIT_S)["event"] != "ended":
            peak = max(peak, running[0].peak_kb())
        return _mb(peak)


def first_step(workload: Workload, data: Path) -> float:
    """Seconds from a client's start to the end of a round of one step; it has the whole set to itself."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        toml = Path(folder, "run.toml")
        toml.write_text(workload.toml(clients=1, steps=1))
        with serving(toml, Path(folder, "out")) as address:
            began = time.monotonic()
            with started(client(address, data)) as process:
                said(process, "trained")
                return time.monotonic() - began


def need(workload: Workload) -> Footprint:
    """What the segment takes, as clients and `sl-server check` tell."""
    config = RunConfig.from_toml(workload.toml(clients=CLIENTS, steps=STEPS))
    return footprint_of(config, Network.build(config))


def measure(workload: Workload, starts: int, data: Path) -> dict[str, Any]:
    """Memory once, starts in turn with an import of torch alone."""
    need_of = need(workload)
    base, _ = torch_alone()
    allowed = base + ALLOWED_MB + (need_of.segment + FACTOR * need_of.activations) / MB
    pairs = [(torch_alone()[1], first_step(workload, data)) for _ in range(starts)]
    return {
        "torch_mb": base,
        "client_mb": memory(workload, data),
        "plain_mb": plain(workload),
        "segment_mb": need_of.segment / MB,
        "activations_mb": need_of.activations / MB,
        "allowed_mb": allowed,
        "starts": pairs,
    }


def sections(found: Mapping[str, Mapping[str, Any]], page: Page) -> Sequence[str]:
    """The page."""
    rows = [
        "| | `import torch` | segment | a batch's activations | allowed | client, at most | | plain PyTorch |",
        "|---|---:|---:|---:|---:|---:|---|---:|",
    ]
    starts = ["| | `import torch` | start to first step | beyond torch | allowed | |", "|---|---:|---:|---:|---:|---|"]
    for title, f in found.items():
        columns = ("torch_mb", "segment_mb", "activations_mb", "allowed_mb", "client_mb")
        numbers = [f[column] for column in columns]
        over = f["client_mb"] - f["allowed_mb"]
        kept = "kept" if over <= 0 else f"{over:.0f} MB over"
        rows.append(
            f"| {title} | " + " | ".join(f"{n:.1f} MB" for n in numbers) + f" | {kept} | {f['plain_mb']:.1f} MB |"
        )
        alone, first = (median(times) for times in zip(*f["starts"], strict=True))
        beyond = median(b - a for a, b in f["starts"])
        kept = "kept" if beyond <= ALLOWED_S else "not kept"
        starts.append(f"| {title} | {alone:.2f} s | {first:.2f} s | {beyond:.2f} s | {ALLOWED_S:g} s | {kept} |")
    return [
        "# A client's memory and start",
        f"{page.made_by}; torch {page.setting['torch']}. The data sets have their real size and format, and random pixels.",
        f"The high-water mark of one of {CLIENTS} clients' resident memory over two rounds of {STEPS} batches of 64 and an evaluation, against "
        f"that of `import torch` + {ALLOWED_MB} MB + segment (weights, gradients, optimiser) + {FACTOR} × activations (what autograd keeps of "
        "a batch, and the cut's). The rest is Python, gRPC, the client's shard of the data, and what malloc keeps between two batches. "
        "Before it trains, a client unmaps the pages of libraries that it has read until then: what training needs of them, about half, comes "
        "back from the kernel's cache of files and is counted. Plain PyTorch is a process that trains the same blocks as long on random "
        "batches, with torch's own optimiser and `z.backward(gradient)`: it has no data, no gRPC and no server.",
        "\n".join(rows),
        "From the process's start to the end of its first step, at a server that is waiting for it, against a process that imports torch "
        f"and nothing else; medians of {len(next(iter(found.values()))['starts'])} in turn, the whole set is this client's.",
        "\n".join(starts),
    ]


def main() -> None:
    parser: argparse.ArgumentParser = parser_of("memory", __doc__)
    parser.add_argument("--starts", type=int, default=5, help="pairs of starts for each network")
    args = parser.parse_args()
    page = Page("memory", "memory")
    found = {}
    for workload in WORKLOADS:
        with tempfile.TemporaryDirectory(prefix="bench-data-") as folder:
            FILES[workload.data][0](Path(folder))
            found[workload.title] = measure(workload, args.starts, Path(folder))
        print(json.dumps({workload.title: found[workload.title]}), file=sys.stderr)
    page.save(args.results, sections(found, page), {"measured": found})


if __name__ == "__main__":
    main()
