"""What every peer's processes do around their system's calls: the same computation, the same clock, the same line at the end.

Imported in the peers' environments, so that it and what it imports need torch, numpy and pydantic only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.processes import Line, module, started
from benchmarks.sides import START_S, limit_s, span
from benchmarks.workloads import WORKLOADS, Workload, batches, one_thread, sgd

Say = Callable[[Line], None]
Server = Callable[[argparse.Namespace, Say], None]
Client = Callable[[argparse.Namespace], Line]
Whole = Callable[[argparse.Namespace], list[Line]]


class Head:
    """The server's half: one step at a time, whoever asks."""

    def __init__(self, workload: Workload) -> None:
        self._head = workload.segments()[1]
        self._optimizer = sgd(self._head)
        self._turn = threading.Lock()

    def step(self, z: Tensor, y: Tensor) -> Tensor:
        """dz (B, *cut), the gradient of the mean loss of z (B, *cut) and y (B,)."""
        with self._turn:
            z = z.detach().requires_grad_()
            loss = F.cross_entropy(self._head(z), y)
            self._optimizer.zero_grad()
            torch.autograd.backward(loss)
            self._optimizer.step()
        assert z.grad is not None
        return z.grad


def train(workload: str, steps: int, folder: Path, clients: int, exchange: Callable[[Tensor, Tensor], Tensor]) -> Line:
    """The client's half, `steps` to warm up and as many that count; `exchange` turns (z, y) into dz.

    The warm-up starts when so many clients have come to the folder with their first batch in hand.
    """
    work = WORKLOADS[workload]
    lower = work.segments()[0]
    optimizer = sgd(lower)
    began = 0.0
    for number, (x, y) in enumerate(batches(work, 2 * steps)):
        if number == 0:
            _meet(folder, clients)
        if number == steps:
            began = time.perf_counter()
        z = lower(x)
        dz = exchange(z.detach(), y)
        optimizer.zero_grad()
        z.backward(dz)
        optimizer.step()
    return {"began": began, "ended": time.perf_counter(), "weights": norm(lower.state_dict())}


def norm(state: dict[str, Tensor]) -> float:
    """Sum of squares of all weights: equal for all who trained the same lower on the same batches."""
    return float(sum(t.double().square().sum() for t in state.values()))


def _meet(folder: Path, clients: int) -> None:
    folder.joinpath(f"here-{os.getpid()}").touch()
    while len(list(folder.glob("here-*"))) < clients:
        time.sleep(0.001)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """What every peer's script takes."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument(
        "role", nargs="?", default="all", choices=("all", "server", "client"), help="all: start the others"
    )
    parser.add_argument("--workload", choices=WORKLOADS, required=True)
    parser.add_argument("--steps", type=int, required=True, help="that count; as many warm up")
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the processes of one run meet")
    parser.add_argument("--address", default="none", help="the server's")
    parser.add_argument("--number", type=int, default=0, help="of the client")
    return parser


def _result(spans: Sequence[Line], steps: int, package: str) -> Line:
    return {
        "steps_per_s": steps / span(spans),
        "clients": len(spans),
        "version": version(package),
        "weights": [span["weights"] for span in spans],
    }


def play(
    parser: argparse.ArgumentParser, package: str, server: Server, client: Client, whole: Whole | None = None
) -> None:
    """The main function of every script: one role of a run, or the whole of it, started from here.

    Stdout carries our JSON lines alone; whatever else prints, prints to stderr.
    """
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # for processes that others start
    one_thread()
    say = _alone_on_stdout()
    if args.role == "server":
        server(args, say)
    elif args.role == "client":
        say(client(args))
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds the blocks that end the processes
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            args.folder = Path(folder)
            say(_result((whole or _whole)(args), args.steps, package))


def _alone_on_stdout() -> Say:
    real = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return lambda line: print(json.dumps(line), file=real, flush=True)


def _whole(args: argparse.Namespace) -> list[Line]:
    """The spans of the clients: the server is started, what its first line holds becomes options of the clients."""
    script = Path(sys.argv[0]).stem

    def command(role: str, **more: Any) -> list[str]:
        options = {key: value for key, value in {**vars(args), **more}.items() if key != "role"}
        return module(
            f"peers.{script}", role, *(part for key, value in options.items() for part in (f"--{key}", value))
        )

    with contextlib.ExitStack() as stack:
        server = stack.enter_context(started(command("server")))
        address = server.line("address", START_S)["address"]
        clients = [
            stack.enter_context(started(command("client", address=address, number=number)))
            for number in range(args.clients)
        ]
        return [client.line("ended", limit_s(args.steps)) for client in clients]
