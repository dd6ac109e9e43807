"""What the sites of NVFlare's job run: `Server` on the server, `Client` on every client. See with_nvflare.py."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from nvflare.collab import collab
from torch import Tensor

from benchmarks.peers.work import Head, train
from benchmarks.sides import limit_s
from benchmarks.workloads import WORKLOADS, one_thread


class Server:
    """The head, and the workflow: let all clients train, write down what they say."""

    def __init__(self, workload: str, steps: int, folder: str) -> None:
        self.workload, self.steps, self.folder = workload, steps, folder

    @collab.init  # type: ignore[untyped-decorator]
    def prepare(self) -> None:
        """Before anything is called."""
        one_thread()
        self._head = Head(WORKLOADS[self.workload])

    @collab.publish  # type: ignore[untyped-decorator]
    def step(self, z: Tensor, y: Tensor) -> Tensor:
        """Called by the clients."""
        return self._head.step(z, y)

    @collab.main  # type: ignore[untyped-decorator]
    def work(self) -> None:
        """The job."""
        results = collab.clients(timeout=limit_s(self.steps)).train()
        spans = [{**dict(span), "server": os.getpid()} for _, span in results]
        Path(self.folder, "spans.json").write_text(json.dumps(spans))


class Client:
    """One client's half."""

    def __init__(self, workload: str, steps: int, clients: int, folder: str) -> None:
        self.workload, self.steps, self.clients, self.folder = workload, steps, clients, folder

    @collab.publish  # type: ignore[untyped-decorator]
    def train(self) -> dict[str, Any]:
        """Called by the server's workflow."""
        one_thread()
        server = collab.server
        span = train(self.workload, self.steps, Path(self.folder), self.clients, lambda z, y: server.step(z, y))
        return {**span, "client": os.getpid()}
