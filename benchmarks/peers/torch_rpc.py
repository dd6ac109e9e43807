"""torch.distributed.rpc: the client calls the server's step once a batch and gets the gradient back.

python -m benchmarks.peers.torch_rpc --workload mlp --steps 1500 --clients 2 --transport uv

Between processes of one machine TensorPipe takes shared memory. `--transport uv` holds it to TCP, as between two machines.
"""

from __future__ import annotations

import argparse
import functools

from torch import Tensor
from torch.distributed import rpc

from benchmarks.peers.work import Head, Say, arguments, free_port, play, train
from benchmarks.processes import Line
from benchmarks.sides import limit_s
from benchmarks.workloads import WORKLOADS


@functools.cache
def _head(workload: str) -> Head:
    return Head(WORKLOADS[workload])


def _step(workload: str, z: Tensor, y: Tensor) -> Tensor:
    """Runs on the server."""
    return _head(workload).step(z, y)


def _join(args: argparse.Namespace, port: int, name: str, rank: int) -> None:
    options = rpc.TensorPipeRpcBackendOptions(
        init_method=f"tcp://127.0.0.1:{port}",
        rpc_timeout=limit_s(args.steps),
        _transports=["uv"] if args.transport == "uv" else None,
        _channels=["basic"] if args.transport == "uv" else None,
    )
    rpc.init_rpc(name, rank=rank, world_size=1 + args.clients, rpc_backend_options=options)


def server(args: argparse.Namespace, say: Say) -> None:
    """Serves until all clients have left."""
    _head(args.workload)
    port = free_port()
    say({"address": port})
    _join(args, port, "server", 0)
    rpc.shutdown()


def client(args: argparse.Namespace) -> Line:
    """The span of one client."""
    _join(args, int(args.address), f"client-{args.number}", 1 + args.number)

    def exchange(z: Tensor, y: Tensor) -> Tensor:
        return rpc.rpc_sync("server", _step, args=(args.workload, z, y))  # type: ignore[no-any-return]

    span = train(args.workload, args.steps, args.folder, args.clients, exchange)
    rpc.shutdown()
    return span


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--transport", choices=("uv", "shm"), default="uv")
    play(parser, "torch", server, client)
