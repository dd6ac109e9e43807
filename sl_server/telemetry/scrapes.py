"""The server's HTTP pages, and a last scrape: a run that ends between two scrapes must not lose its last numbers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from functools import partial

from sl_common.errors import ConfigError
from sl_common.host.http import HttpAnswer, HttpServer
from sl_server.telemetry.health import Health, page

# Prometheus sends this header; a person with a browser does not, and will not come again
SCRAPER = "x-prometheus-scrape-timeout-seconds"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LAST_SCRAPE_S = 60.0  # longest time that the end of a run waits for a last scrape


class Scrapes:
    """Serves /metrics, /healthz and /readyz."""

    def __init__(self, text: Callable[[], bytes]) -> None:
        """`text` is called in the thread that answers."""
        self._text = text
        self._server: HttpServer | None = None
        # start times of the last two scrapes by Prometheus that were answered completely
        self._begun: tuple[float, ...] = ()

    def serve(self, host: str, port: int, health: Health) -> int:
        """Serve at http://host:port/; return the port. Raises ConfigError if it is taken."""
        pages = {
            "/metrics": self._metrics,
            "/healthz": lambda _: page(health.dead),
            "/readyz": lambda _: page(health.away),
        }
        server = HttpServer(pages)
        try:
            found = server.start(host, port)
        except OSError as error:
            server.close()
            raise ConfigError(f"--metrics {host}:{port}: {error.strerror or error}") from error
        self._server = server
        return found

    def _metrics(self, headers: Mapping[str, str]) -> HttpAnswer:
        began = time.monotonic()
        taken = partial(self._answered, began) if SCRAPER in headers else None
        return HttpAnswer(type=CONTENT_TYPE, body=self._text(), taken=taken)

    def _answered(self, began: float) -> None:
        self._begun = (*self._begun[-1:], began)

    async def last(self) -> None:
        """Wait for a scrape that begins now or later, if Prometheus has come at least twice and is not overdue."""
        now = time.monotonic()
        if len(self._begun) < 2:
            return
        before, newest = self._begun
        due = newest + 1.5 * (newest - before) + 0.5  # a scrape may come a little late
        while self._begun[-1] < now and time.monotonic() < min(due, now + LAST_SCRAPE_S):
            await asyncio.sleep(0.05)

    def close(self) -> None:
        """Stop answering, without waiting for open requests."""
        if self._server is not None:
            self._server.close()
            self._server = None
