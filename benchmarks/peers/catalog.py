"""The peers: what pip installs for each, which script runs it, and how many clients it can have."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import ROOT

FOLDER = ROOT / "build" / "peers"
NEEDED = ("torch", "numpy", "pydantic")  # what our workloads import
STEPS = {"mlp": 300, "cnn": 40}  # fewer than `make bench` takes: the slowest peers take ten times our time


@dataclass(frozen=True, slots=True)
class Peer:
    """One line of the table."""

    name: str
    script: str  # a module of benchmarks.peers
    text: str
    args: tuple[str, ...] = ()
    package: str = ""  # what pip installs; empty: it needs nothing but torch, and our own Python runs it
    clients: int | None = None  # at most; None: any number

    @property
    def venv(self) -> Path:
        """The folder of its virtual environment; several peers of one package share it."""
        return FOLDER / self.package.partition("[")[0]

    @property
    def python(self) -> Path:
        """The interpreter that runs it."""
        return self.venv / "bin" / "python" if self.package else Path(sys.executable)


PEERS = {
    p.name: p
    for p in (
        Peer(
            "raw-tcp",
            "raw_tcp",
            "two sockets, TCP_NODELAY, a length and the raw float32 bytes, one thread: what loopback and Python allow",
        ),
        Peer(
            "torch-rpc",
            "torch_rpc",
            "torch.distributed.rpc, one rpc_sync a step, TensorPipe over TCP",
            args=("--transport", "uv"),
        ),
        Peer(
            "torch-rpc-shm",
            "torch_rpc",
            "the same over shared memory, which TensorPipe picks by itself between processes of one machine",
            args=("--transport", "shm"),
        ),
        Peer(
            "torchslicer-grpc",
            "with_torchslicer",
            "TorchSlicer's distributed executor; the driver and the lower's worker are one process, the head's worker the other",
            args=("--transport", "grpc"),
            package="torchslicer[grpc]",
            clients=1,
        ),
        Peer(
            "torchslicer-tcp",
            "with_torchslicer",
            "the same with its raw TCP transport of tensors",
            args=("--transport", "tcp"),
            package="torchslicer[grpc]",
            clients=1,
        ),
        Peer(
            "nvflare",
            "with_nvflare",
            "NVFlare's Collab API in its SimEnv: the client calls a published method of the server once a step",
            package="nvflare",
        ),
        Peer(
            "nvflare-inline",
            "with_nvflare",
            "NVFlare's Collab API with tensor_download_chunk_size 0: tensors travel in the call itself, not in a second one",
            args=("--inline",),
            package="nvflare",
        ),
        Peer(
            "hivemind",
            "with_hivemind",
            "hivemind's RemoteExpert: the head is an expert, logits come back, the loss is the client's; two calls a step, and the "
            "expert computes its forward pass in both",
            package="hivemind",
        ),
    )
}
