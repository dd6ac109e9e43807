"""The two sides of `benchmarks.infer`: a client process that measures what it is told to, and a server that gets the raw image.

python -m benchmarks.infer_sides client: one JSON job a line on stdin, one JSON result a line on stdout. `raw-server`: the whole network on
the server, the simplest service that works: one bidirectional gRPC stream of raw bytes, torch in one thread beside the event loop, no
batching of several clients. Both sides begin with stored bytes in memory and end with the scores of all classes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import queue
import sys
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.data import images
from benchmarks.workloads import one_thread
from sl_client.inference.predictor import Predictor
from sl_client.transport.stream import CHANNEL_OPTIONS
from sl_common.models import build, join
from sl_server.transport.server import SERVER_OPTIONS

METHOD = "/raw/Infer"
PREFIX = 5  # bytes that gRPC puts before each message
INPUT = (1, 28, 28)
WARM_UP = 5
LEAST = 20  # requests that are measured, however long they take


class Raw:
    """Sends images as they are stored, 784 bytes each."""

    def __init__(self, address: str) -> None:
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._channel = grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._answers: Iterator[bytes] = self._channel.stream_stream(METHOD)(iter(self._outbox.get, None))
        self.bytes_up = self.bytes_down = 0

    def ask(self, x: Tensor) -> Tensor:
        """Scores (B, 10) of images (B, 1, 28, 28) uint8."""
        data = x.numpy().tobytes()
        self._outbox.put(data)
        answer = next(self._answers)
        self.bytes_up, self.bytes_down = self.bytes_up + len(data) + PREFIX, self.bytes_down + len(answer) + PREFIX
        return torch.frombuffer(bytearray(answer), dtype=torch.float32).view(len(x), -1)

    def close(self) -> None:
        """End the stream."""
        self._outbox.put(None)
        self._channel.close()


class Split:
    """What `sl-client predict` uses, with one request under way."""

    def __init__(self, address: str) -> None:
        self._predictor = Predictor(address, allowed=("benchmarks",))
        self._predictor.open()
        self._scale = images()

    def ask(self, x: Tensor) -> Tensor:
        """Scores (B, 10) of images (B, 1, 28, 28) uint8."""
        (answer,) = self._predictor.ask([self._scale.normalise(x)])
        return answer.scores

    @property
    def bytes_up(self) -> int:
        """Since it was opened."""
        return self._predictor.bytes_up

    @property
    def bytes_down(self) -> int:
        """Since it was opened."""
        return self._predictor.bytes_down

    def close(self) -> None:
        """End the stream."""
        self._predictor.close()


def client() -> None:
    """Jobs {kind, address, batch, seconds} in, results out: seconds of each request, and bytes of one."""
    one_thread()
    x = images().tests()[0][0]
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        asked = Raw(job["address"]) if job["kind"] == "raw" else Split(job["address"])
        print(json.dumps(measure(asked, x, job["batch"], job["seconds"])), flush=True)
        asked.close()


def measure(asked: Raw | Split, x: Tensor, batch: int, seconds: float) -> dict[str, object]:
    """One request after the other for so long, after some to warm up."""
    taken: list[float] = []
    batches = [x[start : start + batch] for start in range(0, len(x) - batch + 1, batch)]
    first = asked.ask(batches[0])[0]
    for number in range(1, WARM_UP):
        asked.ask(batches[number % len(batches)])
    up, down, until = asked.bytes_up, asked.bytes_down, time.perf_counter() + seconds
    while time.perf_counter() < until or len(taken) < LEAST:
        began = time.perf_counter()
        asked.ask(batches[len(taken) % len(batches)])
        taken.append(time.perf_counter() - began)
    return {
        "taken": taken,
        "up": (asked.bytes_up - up) / len(taken),
        "down": (asked.bytes_down - down) / len(taken),
        "first": first.tolist(),
    }


async def raw_server(weights: Path, listen: str) -> None:
    """The whole cnn behind one call."""
    one_thread()
    network = join(build("cnn", input=INPUT, classes=10, args={}, seed=0))
    network.load_state_dict(load_file(weights))
    network.eval()
    normalise, loop, torchs = images().normalise, asyncio.get_running_loop(), ThreadPoolExecutor(1)

    def scores(data: bytes) -> bytes:
        x = torch.from_numpy(np.frombuffer(data, np.uint8).copy()).view(-1, *INPUT)
        with torch.inference_mode():
            return network(normalise(x)).numpy().tobytes()

    async def infer(requests: AsyncIterator[bytes], _context: object) -> AsyncIterator[bytes]:
        async for data in requests:
            yield await loop.run_in_executor(torchs, scores, data)

    server = grpc.aio.server(options=SERVER_OPTIONS)
    handlers = {"Infer": grpc.stream_stream_rpc_method_handler(infer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("raw", handlers),))
    port = server.add_insecure_port(listen)
    await server.start()
    print(json.dumps({"address": f"{listen.rpartition(':')[0]}:{port}"}), flush=True)
    await server.wait_for_termination()


def main() -> None:
    """One of the two."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.infer_sides")
    parser.add_argument("side", choices=("client", "raw-server"))
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--listen", default="127.0.0.1:0")
    args = parser.parse_args()
    if args.side == "client":
        client()
    else:
        asyncio.run(raw_server(args.weights, args.listen))


if __name__ == "__main__":
    main()
