"""Asking over HTTP by hand: whole requests, and peers that say half a word or read nothing."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

PATIENCE_S = 30.0


def connected(port: int, host: str = "127.0.0.1", receive_bytes: int | None = None) -> socket.socket:
    """A connection, whose peer can send no more than about so many bytes before we read."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    peer = socket.socket(family)
    if receive_bytes is not None:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    peer.settimeout(PATIENCE_S)
    try:
        peer.connect((host, port))
    except OSError:
        peer.close()
        raise
    return peer


def all_of(peer: socket.socket) -> bytes:
    """Whatever comes until the other side ends the connection, or breaks it."""
    got = bytearray()
    with contextlib.suppress(ConnectionError):
        while data := peer.recv(1 << 16):
            got += data
    return bytes(got)


def asked(port: int, request: bytes, host: str = "127.0.0.1") -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of what is answered to a request."""
    with connected(port, host) as peer:
        peer.sendall(request)
        head, _, body = all_of(peer).partition(b"\r\n\r\n")
    line, *rest = head.decode().split("\r\n")
    return int(line.split()[1]), dict(one.split(": ", 1) for one in rest), body


def got(port: int, path: str, *headers: str, method: str = "GET", host: str = "127.0.0.1") -> tuple[int, bytes]:
    """Status and body of a page."""
    lines = [f"{method} {path} HTTP/1.1", "Host: here", *headers, "", ""]
    status, _, body = asked(port, "\r\n".join(lines).encode(), host)
    return status, body


@contextlib.contextmanager
def held(port: int, every_s: float = 0.5) -> Iterator[None]:
    """While inside, peers hold the port as best they can: two that say a request byte by byte, one that reads its answer so.

    Whoever is sent away comes back.
    """
    over = threading.Event()

    def hold(first: bytes, more: bytes) -> None:
        while not over.is_set():
            with contextlib.suppress(OSError), connected(port, receive_bytes=1) as peer:
                peer.sendall(first)
                peer.settimeout(1.0)
                while not over.wait(every_s):
                    if more:
                        peer.sendall(more)
                    elif not peer.recv(1):
                        break
            over.wait(0.05)

    ways = (
        (b"GET /metr", b"i"),
        (b"GET /metrics HTTP/1.1\r\nA: ", b"b"),
        (b"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n", b""),
    )
    threads = [threading.Thread(target=hold, args=way, daemon=True) for way in ways]
    for thread in threads:
        thread.start()
    try:
        time.sleep(0.5)
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(PATIENCE_S)
