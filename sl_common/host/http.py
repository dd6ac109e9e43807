"""Small HTTP server for pages that machines request: metrics and health. No peer can block it or its process.

Law: one daemon thread serves all connections and never blocks on one. A request has one deadline, from the connection
to the last byte of the answer. The number of connections and the bytes of a request are bounded. Closing waits for no
peer. Pages are made in that thread, one at a time.
"""

from __future__ import annotations

import contextlib
import io
import selectors
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from http.client import HTTPException, parse_headers
from urllib.parse import urlsplit

WHOLE_S = 10.0  # deadline of a connection: request, answer and close. Prometheus waits as long by default
CONNECTIONS = 32  # at most; one more closes the oldest
MAX_HEAD = 8192  # bytes of a request's line and headers; a body is not read
MAX_REQUEST_LINE = 2048  # of these, bytes of the request line
MAX_REST = 1 << 16  # bytes that are read and discarded after the answer, so that no reset destroys it
CLOSE_S = 1.0  # time that `close` waits for a page that is being made
ACCEPT_RETRY_S = 0.1  # pause after a connection could not be accepted
PLAIN = "text/plain; charset=utf-8"
_HEAD_ENDS = (b"\r\n\r\n", b"\n\n")


@dataclass(frozen=True, kw_only=True, slots=True)
class HttpAnswer:
    """Content of a page. `taken` is called after the last byte of an answer to GET was handed to the kernel."""

    body: bytes
    type: str = PLAIN
    status: int = 200
    taken: Callable[[], None] | None = None


Page = Callable[[Mapping[str, str]], HttpAnswer]  # argument: the request's headers, names in lower case


@dataclass(kw_only=True, slots=True, eq=False)
class _Connection:
    """One peer's connection. The peer sends a request, gets the answer, and may then close the connection itself."""

    socket: socket.socket
    until: float
    head: bytearray = field(default_factory=bytearray)
    out: memoryview = field(default_factory=lambda: memoryview(b""))
    taken: Callable[[], None] | None = None
    answered: bool = False
    rest: int = 0  # bytes received after the request


class HttpServer:
    """Answers GET and HEAD for a fixed set of paths."""

    def __init__(self, pages: Mapping[str, Page], *, whole_s: float = WHOLE_S, connections: int = CONNECTIONS) -> None:
        self._pages = pages
        self._whole_s, self._most = whole_s, connections
        self._selector = selectors.DefaultSelector()
        self._listener: socket.socket | None = None
        self._open: dict[_Connection, None] = {}  # oldest first
        self._accept_again_at = 0.0
        self._waker, self._wake = socket.socketpair()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)

    def start(self, host: str, port: int) -> int:
        """Start answering at http://host:port/.

        Return the port, which the system chooses if it was 0. Raises OSError.
        """
        host = host.strip("[]")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        both = host == "::" and socket.has_dualstack_ipv6()
        self._listener = socket.create_server((host, port), family=family, dualstack_ipv6=both)
        self._listener.setblocking(False)
        self._wake.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._thread.start()
        found: int = self._listener.getsockname()[1]
        return found

    def close(self) -> None:
        """Stop answering and release the port. Answers that are being sent are cut off."""
        self._closing = True
        if self._thread.ident is None:
            self._release()
            return
        with contextlib.suppress(OSError):  # the thread has ended already
            self._waker.send(b"x")
        self._thread.join(CLOSE_S)

    # --- the thread

    def _run(self) -> None:
        try:
            while not self._closing:
                for key, _ in self._selector.select(self._wait_s()):
                    if isinstance(key.data, _Connection):
                        self._serve(key.data)
                    elif key.fileobj is self._listener:
                        self._accept()
                self._end_overdue()
        finally:
            self._release()

    def _release(self) -> None:
        for connection in list(self._open):
            self._end(connection)
        for one in (self._listener, self._wake, self._waker, self._selector):
            if one is not None:
                one.close()

    def _wait_s(self) -> float | None:
        """Return the seconds until the next deadline; None if there is none."""
        dates = [connection.until for connection in self._open]
        dates += [self._accept_again_at] if self._accept_again_at else []
        return max(0.0, min(dates) - time.monotonic()) if dates else None

    def _end_overdue(self) -> None:
        now = time.monotonic()
        for connection in [one for one in self._open if one.until <= now]:
            self._end(connection)
        if self._accept_again_at and self._accept_again_at <= now and self._listener is not None:
            self._accept_again_at = 0.0
            self._selector.register(self._listener, selectors.EVENT_READ)

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            peer, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError:  # no file descriptor is free
            self._selector.unregister(self._listener)
            self._accept_again_at = time.monotonic() + ACCEPT_RETRY_S
            return
        if len(self._open) >= self._most:
            self._end(next(iter(self._open)))
        peer.setblocking(False)
        connection = _Connection(socket=peer, until=time.monotonic() + self._whole_s)
        self._open[connection] = None
        self._selector.register(peer, selectors.EVENT_READ, connection)

    def _serve(self, connection: _Connection) -> None:
        """Read or write as much as possible without blocking."""
        if connection not in self._open:  # it was closed for a newer one in this turn
            return
        try:
            if connection.out:
                self._write(connection)
            else:
                self._read(connection)
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self._end(connection)

    def _read(self, connection: _Connection) -> None:
        data = connection.socket.recv(4096)
        if connection.answered:
            connection.rest += len(data)
        if not data or connection.rest > MAX_REST:
            self._end(connection)
        elif not connection.answered:
            connection.head += data
            if len(connection.head) > MAX_HEAD or any(end in connection.head for end in _HEAD_ENDS):
                self._answer(connection)

    def _answer(self, connection: _Connection) -> None:
        answer, with_body = self._asked(bytes(connection.head))
        connection.head.clear()
        connection.out = memoryview(_head(answer) + (answer.body if with_body else b""))
        connection.taken = answer.taken if with_body else None
        connection.answered = True
        self._selector.modify(connection.socket, selectors.EVENT_WRITE, connection)
        self._write(connection)

    def _write(self, connection: _Connection) -> None:
        connection.out = connection.out[connection.socket.send(connection.out) :]
        if connection.out:
            return
        if connection.taken is not None:
            connection.taken()
        connection.socket.shutdown(socket.SHUT_WR)
        self._selector.modify(connection.socket, selectors.EVENT_READ, connection)

    def _end(self, connection: _Connection) -> None:
        del self._open[connection]
        self._selector.unregister(connection.socket)
        connection.socket.close()

    # --- requests

    def _asked(self, data: bytes) -> tuple[HttpAnswer, bool]:
        """Return the answer to a request, and True if its body is to be sent."""
        line, _, rest = data.partition(b"\n")
        if len(line) > MAX_REQUEST_LINE:
            return _refusal(HTTPStatus.REQUEST_URI_TOO_LONG), True
        if len(data) > MAX_HEAD or not any(end in data for end in _HEAD_ENDS):
            return _refusal(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE), True
        try:
            method, target, version = line.decode("ascii").split()
            path = urlsplit(target).path
            headers = parse_headers(io.BytesIO(rest))
        except (ValueError, HTTPException):
            return _refusal(HTTPStatus.BAD_REQUEST), True
        if not version.startswith("HTTP/1."):
            return _refusal(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED), True
        asked = {name.lower(): value for name, value in headers.items()}
        return self._page(method, path, asked), method != "HEAD"

    def _page(self, method: str, path: str, headers: Mapping[str, str]) -> HttpAnswer:
        page = self._pages.get(path)
        if page is None:
            return _refusal(HTTPStatus.NOT_FOUND, f"no such page here; there are {', '.join(self._pages)}")
        if method not in ("GET", "HEAD"):
            return _refusal(HTTPStatus.METHOD_NOT_ALLOWED)
        try:
            return page(headers)
        except Exception:  # a bug of the page must not end the server
            traceback.print_exc(file=sys.stderr)
            return _refusal(HTTPStatus.INTERNAL_SERVER_ERROR)


def _refusal(status: HTTPStatus, text: str = "") -> HttpAnswer:
    return HttpAnswer(status=status, body=f"{text or status.phrase}\n".encode())


def _head(answer: HttpAnswer) -> bytes:
    lines = [f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}", f"Date: {formatdate(usegmt=True)}"]
    lines += [f"Content-Type: {answer.type}", f"Content-Length: {len(answer.body)}", "Connection: close"]
    if answer.status == HTTPStatus.METHOD_NOT_ALLOWED:
        lines.append("Allow: GET, HEAD")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")
