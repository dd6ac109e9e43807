"""An HTTP proxy on loopback that speaks CONNECT: it looks names up by itself, remembers what it was asked for, and all that passed."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

HOST = "gpu.invalid"  # a name that the proxy alone can look up


class ConnectProxy:
    """Leads to `to`, whatever HOST it is asked for. With `status` it refuses."""

    def __init__(self, to: str, status: int = 200) -> None:
        self._to, self._status = to, status
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.heads: list[str] = []
        self.seen = bytearray()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def server(self) -> str:
        """What a client calls the server behind it."""
        return f"{HOST}:{self._to.rpartition(':')[2]}"

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=self._listener.accept()[:1], daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            head = b""
            while b"\r\n\r\n" not in head:
                if not (more := client.recv(4096)):
                    return
                head += more
            self.heads.append(head.decode())
            if self._status != 200:
                client.sendall(f"HTTP/1.1 {self._status} No\r\n\r\n".encode())
                return
            host, _, port = self._to.rpartition(":")
            try:
                server = socket.create_connection((host, int(port)))
            except OSError:
                client.sendall(b"HTTP/1.1 502 No\r\n\r\n")
                return
            with server:
                client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                threading.Thread(target=self._pump, args=(client, server), daemon=True).start()
                self._pump(server, client)

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self.seen += data
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Take nobody any more."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@contextmanager
def proxying(to: str, status: int = 200) -> Iterator[ConnectProxy]:
    """Closed at the end."""
    proxy = ConnectProxy(to, status)
    try:
        yield proxy
    finally:
        proxy.close()
