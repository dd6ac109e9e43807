"""TorchSlicer: a model of two stages over its distributed executor, tensors over gRPC or over its own TCP.

python -m benchmarks.peers.with_torchslicer --workload mlp --steps 1500 --transport tcp

The driver, which has the data, and the worker of the lower run in one process, as one client's device would; the worker of the head is
the server. One pipeline has one driver: more clients are not supported. Its own 5 s for a worker to load its stage is too short here.
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import torch
import torchslicer as ts
from torch import Tensor, nn
from torchslicer.discovery import StaticDiscovery
from torchslicer.executors.distributed import DistributedExecutor
from torchslicer.monitor import TrainingCallback

from benchmarks.peers.work import Say, arguments, free_port, norm, play
from benchmarks.processes import Line
from benchmarks.workloads import LR, MOMENTUM, WORKLOADS, Workload, batches

INIT_S = 60.0


class _Batches:
    """The batches of warm-up and measurement, half of them an epoch."""

    def __init__(self, workload: Workload, steps: int) -> None:
        self._steps, self._all = steps, batches(workload, 2 * steps)

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (next(self._all) for _ in range(self._steps))


class _Clock(TrainingCallback):  # type: ignore[misc]
    """When the second epoch began and ended."""

    def __init__(self) -> None:
        self.began = self.ended = 0.0

    def on_epoch_begin(self, epoch: int) -> None:  # noqa: ARG002
        self.began = time.perf_counter()

    def on_epoch_end(self, epoch: int, metrics: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        self.ended = time.perf_counter()
        return metrics


def _worker(port: int, transport: str) -> None:
    os.environ["TENSOR_TRANSPORT"] = transport  # the only way to tell a worker
    ts.run_worker(port=port, coordinator_addr=None, worker_address=f"127.0.0.1:{port}", device="cpu")


def server(args: argparse.Namespace, say: Say) -> None:
    """The worker that gets the head."""
    port = free_port()
    say({"address": port})
    _worker(port, args.transport)


def client(args: argparse.Namespace) -> Line:
    """The driver and the worker that gets the lower."""
    port, driver = free_port(), f"127.0.0.1:{free_port()}"
    worker = threading.Thread(target=_worker, args=(port, args.transport), daemon=True)
    worker.start()
    config = ts.RunConfig.create(n_workers=2, transport=args.transport, device="cpu")
    config.startup.worker_init_rpc_timeout_s = INIT_S
    config.logging.enabled = False
    config.checkpoint.enabled, config.checkpoint.dir = (
        True,
        str(args.folder),
    )  # each worker saves its stage when it is told to end
    saved = args.folder / config.run_id
    saved.mkdir()
    peers = [f"127.0.0.1:{port}", f"127.0.0.1:{args.address}"]
    executor = DistributedExecutor(StaticDiscovery(peers), driver, coordinator_bind_addr=driver, run_config=config)
    workload = WORKLOADS[args.workload]
    lower, head = workload.segments()
    sliced = ts.slice(nn.Sequential(lower, head), n=2, executor=executor, pack=list)
    clock = _Clock()
    sliced.train(
        _Batches(workload, args.steps),
        {"name": "SGD", "params": {"lr": LR, "momentum": MOMENTUM}},
        {"name": "CrossEntropyLoss", "params": {}},
        epochs=2,
        callbacks=[clock],
    )
    worker.join(INIT_S)
    weights = norm(torch.load(saved / "worker_0_epoch_2.pt")["layer_state_dict"])
    return {"began": clock.began, "ended": clock.ended, "weights": weights}


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--transport", choices=("grpc", "tcp"), default="grpc")
    play(parser, "torchslicer", server, client)
