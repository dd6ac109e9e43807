"""What is compared, each run once in processes of its own: the plain loop, the bare stream, and our system."""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.processes import BenchmarkFailed, Line, Process, module, script, started
from benchmarks.workloads import BATCH, LR, MOMENTUM, Workload

Result = dict[str, Any]
Words = Sequence[object]
START_S = 120.0  # for a process to start
_PHASE = re.compile(r'^sl_step_seconds_(sum|count)\{phase="(\w+)"\} (\S+)$', re.MULTILINE)


def limit_s(steps: int) -> float:
    """How long a run may take before it is given up."""
    return START_S + 2.0 * steps


def plain(workload: Workload, steps: int) -> Result:
    """One process, no cut."""
    with started(module("plain_loop", "--workload", workload.name, "--steps", steps)) as loop:
        return loop.line("steps_per_s", limit_s(steps))


def bare(workload: Workload, steps: int, *, piece: int = 0, tuned: bool = False, clients: int = 1) -> Result:
    """The bare stream. `phases`: ms of a step; the wire is what the round trip takes beyond the server's computing.

    Several clients start together; the rate is that of each, from the first that begins to count to the last that ends, and
    `phases` are one client's.
    """
    common = ("--workload", workload.name, "--piece", piece, *(("--tuned",) if tuned else ()))
    with contextlib.ExitStack() as stack:
        common = (*common, "--steps", steps)
        server = stack.enter_context(started(module("bare_stream", "server", *common, "--clients", clients)))
        address = f"127.0.0.1:{server.line('port', START_S)['port']}"
        command = module("bare_stream", "client", *common, "--address", address)
        running = [stack.enter_context(started(command)) for _ in range(clients)]
        results = [client.line("steps_per_s", limit_s(steps)) for client in running]
        serving = server.line("server_compute", START_S)
    computing = serving["server_compute"] / 2 / clients  # it counts the warm-up too
    seconds = results[0]["seconds"]
    seconds |= {"server_compute": computing, "wire": seconds.pop("round_trip") - computing}
    return {
        "steps_per_s": steps / span(results),
        "phases": {k: 1e3 * s / steps for k, s in seconds.items()},
        "cpu_ms": {
            "server": 1e3 * serving["cpu_s"] / clients / steps,
            "client": 1e3 * sum(r["cpu_s"] for r in results) / clients / steps,
        },
        "peak_mb": {"server": serving["peak_kb"] / 1e3, "client": max(r["peak_kb"] for r in results) / 1e3},
    }


def span(results: Sequence[Result]) -> float:
    """Seconds from the first that began to count to the last that ended: processes of one machine share one clock."""
    return float(max(r["ended"] for r in results) - min(r["began"] for r in results))


def config(workload: Workload, steps: int, clients: int = 1) -> str:
    """Our system's configuration: one round to warm up, one that counts, the evaluation after both.

    Several clients train one head, which takes a step on each batch as it comes: as the bare stream's does, and the peers'.
    """
    optimizer = f'optimizer = {{ kind = "sgd", lr = {LR}, momentum = {MOMENTUM} }}'
    return f"""
[run]
name = "bench-{workload.name}"
rounds = 2
clients = {clients}
threads = 1
[model]
name = "{workload.model or workload.name}"
cut = {workload.after}
input = {list(workload.input)}
classes = 10
args = {{ {workload.args} }}
[data]
name = "benchmarks.data:{workload.data}"
batch_size = {BATCH}
[protocol]
preset = "parallel"
barrier = {{ kind = "each" }}
[client]
wave = {{ steps = {steps} }}
{optimizer}
[server]
{optimizer}
[eval]
every = 0
"""


class _Scrapes:
    """What /metrics and the system said at the end of each round; a look in between would disturb what it measures."""

    def __init__(self, phases: bool) -> None:
        self._wanted = phases
        self.port = 0
        self.server: Process | None = None
        self.clients: list[Process] = []
        self._cpu: list[tuple[float, float]] = []  # seconds: the server's, all clients'
        self._peak_kb = (0, 0)
        self.taken: list[dict[str, dict[str, float]]] = []

    def hear(self, line: Line) -> None:
        """A line of the server's."""
        if line.get("event") == "metrics":
            self.port = line["port"]
        if line.get("event") == "round":
            with contextlib.suppress(OSError):  # the run is over already: this pair's are lost, not its time
                self._look()
                if self._wanted:
                    self.taken.append(_scrape(self.port))

    def _look(self) -> None:
        if self.server is not None and self.clients:
            self._cpu.append((self.server.cpu_s(), sum(client.cpu_s() for client in self.clients)))
            self._peak_kb = (self.server.peak_kb(), max(client.peak_kb() for client in self.clients))

    def cost(self, steps: int) -> Result:
        """CPU ms a client's step in the second round, and MB of memory at most, of server and clients; empty if a look came too late."""
        if len(self._cpu) != 2:
            return {}
        sides = ("server", "client")
        used = [1e3 * (now - first) / steps / len(self.clients) for first, now in zip(*self._cpu, strict=True)]
        return {
            "cpu_ms": dict(zip(sides, used, strict=True)),
            "peak_mb": dict(zip(sides, [kb / 1e3 for kb in self._peak_kb], strict=True)),
        }

    def phases(self) -> dict[str, float]:
        """Mean ms of a step by phase in the second round; empty if a scrape came too late."""
        if len(self.taken) != 2:
            return {}
        first, last = self.taken
        return {
            phase: 1e3 * (now["sum"] - first[phase]["sum"]) / (now["count"] - first[phase]["count"])
            for phase, now in last.items()
        }


def _scrape(port: int) -> dict[str, dict[str, float]]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    phases: dict[str, dict[str, float]] = {}
    for which, phase, value in _PHASE.findall(text):
        phases.setdefault(phase, {})[which] = float(value)
    return phases


def ours(
    workload: Workload,
    steps: int,
    *,
    clients: int = 1,
    server: Words = (),
    client: Words = (),
    extra: str = "",
    phases: bool = True,
) -> Result:
    """`sl-server run` and `sl-client run`; the time is the server's own, from the second wave's begin to its round's end.

    `server` and `client` are further options of the two commands, `extra` is further configuration. Without `phases` nobody asks for
    /metrics, which the server's CPU time would hold.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        toml, out = Path(folder, "run.toml"), Path(folder, "out")
        toml.write_text(config(workload, steps, clients) + extra)
        scrapes = _Scrapes(phases)
        at = ("--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0")
        with contextlib.ExitStack() as stack:
            serve = script("sl-server", "run", toml, *at, "--out", out, "--json", *server)
            serves = scrapes.server = stack.enter_context(started(serve, scrapes.hear))
            address = serves.line("address", START_S)["address"]
            command = script("sl-client", "run", "--server", address, "--allow", "benchmarks", "--json", *client)
            scrapes.clients = [stack.enter_context(started(command)) for _ in range(clients)]
            for trains in scrapes.clients:
                trains.finish(2 * limit_s(steps))
            serves.finish(START_S)
        rate = steps / second_round_seconds(out)
        return {"steps_per_s": rate, "phases": scrapes.phases(), **scrapes.cost(steps), **_overhead(out)}


def second_round_seconds(out: Path) -> float:
    """From the second wave's begin to its round's end, by the server's clock."""
    lines = [json.loads(text) for text in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    at = {
        (line["event"], line["round"]): line["seconds"]
        for line in lines
        if line.get("evaluate") is not True and "round" in line
    }
    try:
        return float(at["round", 2] - at["wave_begun", 2])
    except KeyError as error:
        raise BenchmarkFailed(f"sl-server wrote no line for {error}") from error


def _overhead(out: Path) -> dict[str, float]:
    """Bytes on the wire (gRPC's prefix included) to bytes of tensors, each way, over the whole run."""
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    wire, payload = summary["bytes"], summary["payload_bytes"]
    kinds = (("up", "smashed"), ("down", "gradient"))
    return {f"wire_per_tensor_byte_{way}": wire[way][kind] / payload[way][kind] for way, kind in kinds}
