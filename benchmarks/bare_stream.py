"""The reference: split training over a bare grpc.aio bidirectional stream of raw bytes, and nothing else.

Up go the float32 bytes of z and the int64 bytes of y, down those of dz; no protobuf, no header, no check, no thread hop: torch
runs on the event loop between a read and a write. `--piece` cuts a message into pieces of so many bytes; `--tuned` sets HTTP/2
frames and windows that hold a whole message, and no bandwidth probes.

python -m benchmarks.bare_stream server --workload mlp
python -m benchmarks.bare_stream client --workload mlp --address 127.0.0.1:PORT
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import time

import grpc
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.processes import cost
from benchmarks.raw import Laps, gather, pieces, view
from benchmarks.workloads import BATCH, WORKLOADS, Workload, batches, one_thread, sgd

Options = tuple[tuple[str, int], ...]
DEFAULT: Options = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
TUNED: Options = (
    *DEFAULT,
    ("grpc.http2.max_frame_size", 4 << 20),
    ("grpc.http2.lookahead_bytes", 4 << 20),
    ("grpc.http2.bdp_probe", 0),
)


async def serve(workload: Workload, piece: int, options: Options, clients: int, steps: int) -> None:
    """Train the head for so many clients, who start together, then print the seconds that computing took, the warm-up's included, and the
    CPU time from the end of the warm-up, `steps` steps of each client, to the last reply."""
    head = workload.segments()[1]
    began, ended, taken = 0.0, 0.0, 0
    optimizer = sgd(head)
    begin, over, laps = asyncio.Barrier(clients), asyncio.Barrier(clients + 1), Laps()
    nbytes = BATCH * math.prod(workload.cut) * 4

    def step(data: bytes | memoryview) -> Tensor:
        z = torch.frombuffer(data, dtype=torch.float32, count=nbytes // 4).view(BATCH, *workload.cut).requires_grad_()
        y = torch.frombuffer(data, dtype=torch.int64, offset=nbytes)
        loss = F.cross_entropy(head(z), y)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        assert z.grad is not None
        return z.grad

    async def train(_requests: object, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        nonlocal began, ended, taken
        memory = memoryview(bytearray(nbytes + 8 * BATCH))
        data = await gather(context.read, memory)
        await begin.wait()
        while data is not None:
            laps.lap("wait")
            dz = step(data)
            laps.lap("server_compute")
            for out in pieces(view(dz), memoryview(b""), piece or nbytes):
                await context.write(out)
            taken += 1
            if taken == steps * clients:
                began = time.process_time()
            ended = time.process_time()
            data = await gather(context.read, memory)
        await over.wait()

    server = grpc.aio.server(options=options)
    handlers = {"Train": grpc.stream_stream_rpc_method_handler(train)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bare.Stream", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(json.dumps({"port": port}), flush=True)
    await over.wait()
    await server.stop(grace=1)
    print(json.dumps({"server_compute": laps["server_compute"], **cost(began, ended)}), flush=True)


async def train(workload: Workload, piece: int, options: Options, steps: int, address: str) -> dict[str, object]:
    """Steps per second over `steps` steps, after as many to warm up; and the seconds that each phase of them took."""
    lower = workload.segments()[0]
    optimizer = sgd(lower)
    shape = (BATCH, *workload.cut)
    memory = memoryview(bytearray(math.prod(shape) * 4))
    laps, started, began = Laps(), 0.0, 0.0
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        call = channel.stream_stream("/bare.Stream/Train")()
        for number, (x, y) in enumerate(batches(workload, 2 * steps)):
            if number == steps:
                laps, started, began = Laps(), time.perf_counter(), time.process_time()
            laps.lap("batch")
            z = lower(x)
            laps.lap("client_forward")
            for out in pieces(view(z), view(y), piece or len(memory)):
                await call.write(out)
            data = await gather(call.read, memory)
            assert data is not None
            laps.lap("round_trip")
            optimizer.zero_grad()
            z.backward(torch.frombuffer(data, dtype=torch.float32).view(shape))
            optimizer.step()
            laps.lap("client_backward")
        ended, spent = time.perf_counter(), time.process_time()
        await call.done_writing()
        await call.read()
    times = {"steps_per_s": steps / (ended - started), "seconds": dict(laps), "began": started, "ended": ended}
    return {**times, **cost(began, spent)}


def main() -> None:
    """One side of the stream; JSON lines on stdout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", choices=("server", "client"))
    parser.add_argument("--workload", choices=WORKLOADS, required=True)
    parser.add_argument("--piece", type=int, default=0, help="bytes of a message; 0 = all in one")
    parser.add_argument("--tuned", action="store_true", help="HTTP/2 options for messages of this size")
    parser.add_argument("--steps", type=int, help="that count, after as many to warm up; by default the workload's")
    parser.add_argument("--address", help="the server's")
    parser.add_argument("--clients", type=int, default=1, help="whom the server waits for")
    args = parser.parse_args()
    one_thread()
    workload = WORKLOADS[args.workload]
    options = TUNED if args.tuned else DEFAULT
    steps = args.steps or workload.steps
    if args.side == "server":
        asyncio.run(serve(workload, args.piece, options, args.clients, steps))
    else:
        print(json.dumps(asyncio.run(train(workload, args.piece, options, steps, args.address))))


if __name__ == "__main__":
    main()
