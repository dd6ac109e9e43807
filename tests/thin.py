"""A link so thin that a message takes minutes, without rights or namespaces: a relay that lets so many bytes a second through each way.

All connections share it. Like a modem it has a queue of its own, of 64 kB; it asks for small segments, which keeps the kernel's buffers
at its ends small.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

PIECE = 512  # bytes that pass at once
QUEUE = 128  # pieces of each connection that may wait
LAG_S = 0.25  # less than this a busy relay was not scheduled in time, and makes up for it
BUFFER = 4096
SEGMENT = 1000


class Thin:
    """The relay. `passed` counts the bytes to the server and those to the client."""

    def __init__(self, server: str, up: float, down: float) -> None:
        """`up`, `down`: bytes a second."""
        host, _, port = server.rpartition(":")
        self._server, self._rates = (host, int(port)), (up, down)
        self._ways = threading.Lock(), threading.Lock()
        self._free = [0.0, 0.0]  # when the link can take more
        self.passed = [0, 0]
        self.connections = 0
        self._sockets: list[socket.socket] = []
        self._listener = self._small()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _small(self) -> socket.socket:
        made = socket.socket()
        for level, option, value in (
            (socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER),
            (socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER),
            (socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT),
            (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        ):
            made.setsockopt(level, option, value)
        self._sockets.append(made)
        return made

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._sockets.append(client)
                self.connections += 1
                server = self._small()
                with contextlib.suppress(OSError):
                    server.connect(self._server)
                    for way in ((client, server, 0), (server, client, 1)):
                        threading.Thread(target=self._pump, args=way, daemon=True).start()

    def _read(self, source: socket.socket, waiting: queue.Queue[bytes]) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(PIECE):
                waiting.put(data)
        waiting.put(b"")

    def _pump(self, source: socket.socket, to: socket.socket, way: int) -> None:
        waiting: queue.Queue[bytes] = queue.Queue(QUEUE)
        threading.Thread(target=self._read, args=(source, waiting), daemon=True).start()
        with contextlib.suppress(OSError):
            while data := waiting.get():
                with self._ways[way]:
                    now, free = time.monotonic(), self._free[way]
                    self._free[way] = (free if now - free < LAG_S else now) + len(data) / self._rates[way]
                    time.sleep(max(0.0, self._free[way] - time.monotonic()))
                to.sendall(data)
                self.passed[way] += len(data)
        for end in (source, to):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End everything."""
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


@contextmanager
def thin(server: str, up: float, down: float) -> Iterator[Thin]:
    """A thin link to a server."""
    link = Thin(server, up, down)
    try:
        yield link
    finally:
        link.close()
