"""The address where a Prometheus asks, and its last question: a run that ends between two scrapes must not lose its last numbers."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from sl_common.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse

ANSWER_S = 5.0  # for a whole request to come, and for its answer to be taken
SCRAPER = "HTTP_X_PROMETHEUS_SCRAPE_TIMEOUT_SECONDS"  # whoever asks by hand does not come again by itself
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MOST_S = 60.0  # that the end of a run waits for a last scrape


class _Server(ThreadingMixIn, WSGIServer):
    """Closing it waits for the answers that are on their way."""

    daemon_threads = False
    block_on_close = True


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    timeout = ANSWER_S  # or somebody who says nothing would keep the process from ending

    def log_message(self, *_args: object) -> None:
        """Scrapes are no news."""


class Scrapes:
    """Answers those of one run."""

    def __init__(self, text: Callable[[], bytes]) -> None:
        """`text` is called in the thread of each request."""
        self._text = text
        self._server: WSGIServer | None = None
        self._begun: tuple[float, ...] = ()  # when the last two that were answered began, of a Prometheus

    def serve(self, host: str, port: int) -> int:
        """Answer at http://host:port/metrics; returns the port. Raises ConfigError if it is taken."""
        server = _Server6 if ":" in host else _Server
        try:
            self._server = make_server(
                host.strip("[]"), port, self._answer, server_class=server, handler_class=_Handler
            )
        except OSError as error:
            raise ConfigError(f"--metrics {host}:{port}: {error.strerror or error}") from error
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="metrics", daemon=True).start()
        return self._server.server_port

    def _answer(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        began = time.monotonic()
        text = self._text()
        start_response("200 OK", [("Content-Type", CONTENT_TYPE), ("Content-Length", str(len(text)))])
        if SCRAPER in environ:
            self._begun = (*self._begun[-1:], began)
        return [text]

    async def last(self) -> None:
        """Wait for one that begins now or later, if a Prometheus has come at least twice and is not overdue."""
        now = time.monotonic()
        if len(self._begun) < 2:
            return
        before, newest = self._begun
        due = newest + 1.5 * (newest - before) + 0.5  # a little late is late, not gone
        while self._begun[-1] < now and time.monotonic() < min(due, now + MOST_S):
            await asyncio.sleep(0.05)

    def close(self) -> None:
        """Stop answering."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
