"""The limit of loopback: blocking sockets that carry the bytes of float32 and int64, each message after its length in 8 bytes.

python -m benchmarks.peers.raw_tcp --workload mlp --steps 1500 --clients 2
"""

from __future__ import annotations

import argparse
import math
import selectors
import socket
import struct

import torch
from torch import Tensor

from benchmarks.peers.work import Head, Say, arguments, play, train
from benchmarks.processes import Line
from benchmarks.raw import view
from benchmarks.workloads import BATCH, WORKLOADS, Workload

_LENGTH = struct.Struct("!Q")


class _Wire:
    """Messages over one connection, received into one piece of memory."""

    def __init__(self, connection: socket.socket, nbytes: int) -> None:
        self._connection = connection
        self._memory = memoryview(bytearray(nbytes))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, *parts: memoryview) -> None:
        self._connection.sendall(_LENGTH.pack(sum(len(part) for part in parts)))
        for part in parts:
            self._connection.sendall(part)

    def receive(self) -> memoryview | None:
        """The next message, until the next call; None at the end."""
        length = self._fill(memoryview(bytearray(_LENGTH.size)))
        return self._fill(self._memory[: _LENGTH.unpack(length)[0]]) if length is not None else None

    def _fill(self, into: memoryview) -> memoryview | None:
        filled = 0
        while filled < len(into):
            got = self._connection.recv_into(into[filled:])
            if not got:
                return None
            filled += got
        return into


def _cut(workload: Workload) -> tuple[tuple[int, ...], int]:
    shape = (BATCH, *workload.cut)
    return shape, 4 * math.prod(shape)


def server(args: argparse.Namespace, say: Say) -> None:
    """One thread, one head: whoever's message is there is served, the whole of it at once."""
    workload = WORKLOADS[args.workload]
    head, (shape, nbytes) = Head(workload), _cut(workload)
    with socket.create_server(("127.0.0.1", 0)) as listening, selectors.DefaultSelector() as waiting:
        say({"address": listening.getsockname()[1]})
        for _ in range(args.clients):
            connection = listening.accept()[0]
            waiting.register(connection, selectors.EVENT_READ, _Wire(connection, nbytes + 8 * BATCH))
        while waiting.get_map():
            for key, _ in waiting.select():
                wire: _Wire = key.data
                message = wire.receive()
                if message is None:
                    waiting.unregister(key.fileobj)
                    continue
                z = torch.frombuffer(message, dtype=torch.float32, count=nbytes // 4).view(shape)
                wire.send(view(head.step(z, torch.frombuffer(message, dtype=torch.int64, offset=nbytes))))


def client(args: argparse.Namespace) -> Line:
    """The span of one client."""
    workload = WORKLOADS[args.workload]
    shape, nbytes = _cut(workload)
    with socket.create_connection(("127.0.0.1", int(args.address))) as connection:
        wire = _Wire(connection, nbytes)

        def exchange(z: Tensor, y: Tensor) -> Tensor:
            wire.send(view(z), view(y))
            message = wire.receive()
            assert message is not None
            return torch.frombuffer(message, dtype=torch.float32).view(shape)

        return train(args.workload, args.steps, args.folder, args.clients, exchange)


if __name__ == "__main__":
    play(arguments(__doc__), "torch", server, client)
