"""The parts of a server process around its loop: watchers, gRPC on asyncio, the metrics address and signals.

Law: everything that was started here is ended on exit, in the reverse order, whatever happened.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Protocol, TypeVar

from prometheus_client import CollectorRegistry

from sl_common.exits import HAND_OVER_S
from sl_common.host.descriptors import Shortage
from sl_common.host.signals import hang_up
from sl_server.console.show import ServerConsole
from sl_server.process.descriptors import watch_descriptors
from sl_server.security import handshakes
from sl_server.security.credentials import Credentials
from sl_server.security.expiry import Expiry, expose
from sl_server.telemetry.health import Health
from sl_server.telemetry.scrapes import Scrapes
from sl_server.transport import server
from sl_server.transport.inbox import Inbox

STOP_GRACE_S = 2.0  # for messages that are still being written when the loop is over
R = TypeVar("R")


class ServedMetrics(Protocol):
    """A server's metrics and the pages that show them."""

    registry: CollectorRegistry
    scrapes: Scrapes


class Harness:
    """The process around one loop. Made in the event loop's thread; a context manager that ends everything."""

    def __init__(self, show: ServerConsole, door: Credentials, metrics: ServedMetrics) -> None:
        self._show, self._door, self._metrics = show, door, metrics
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        self._shortage = Shortage(show.warn)
        self._stack = AsyncExitStack()
        self._stop: Callable[[float], Coroutine[Any, Any, None]] | None = None

    async def __aenter__(self) -> Harness:
        expose(self._metrics.registry, self._door.certificates)
        for watcher in (
            watch_descriptors(self._shortage),
            Expiry(self._door.certificates, self._show.warn).watch(),
        ):
            self._stack.callback(asyncio.create_task(watcher).cancel)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def end(self) -> None:
        """Report, from any thread, that the loop is over."""
        self._loop.call_soon_threadsafe(self._over.set)

    async def listen(self, inbox: Inbox, address: str, call: server.RpcName) -> str:
        """Take streams of a call at HOST:PORT. Return the address, with the port that was chosen if it was 0."""
        self._stack.enter_context(handshakes.heard(inbox.refused, self._shortage.met))
        grpc_server, port = await server.start(inbox, address, self._door, call)
        self._stop = grpc_server.stop
        self._stack.push_async_callback(grpc_server.stop, 0)
        return f"{address.rpartition(':')[0]}:{port}"

    def serve_metrics(self, at: tuple[str, int] | None, health: Health) -> None:
        """Serve metrics and health over HTTP at `at`, if given, and report the address."""
        if at is None:
            return
        port = self._metrics.scrapes.serve(*at, health)
        self._stack.callback(self._metrics.scrapes.close)
        self._show.say("metrics", f"metrics at http://{at[0]}:{port}/metrics", port=port)

    async def until_over(self) -> None:
        """Wait until the loop is over and its last messages are written; then no stream is open."""
        await self._over.wait()
        if self._stop is not None:
            await self._stop(STOP_GRACE_S)


def on_signals(handle: Callable[[str], None]) -> None:
    """Call `handle` in the event loop with the name of each SIGINT, SIGTERM and, unless it is ignored, SIGHUP."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, *hang_up()):
        loop.add_signal_handler(number, handle, number.name)


def run_process(main: Coroutine[Any, Any, R]) -> R:
    """Run an event loop until `main` returns, with threads that hand over to each other quickly."""
    sys.setswitchinterval(HAND_OVER_S)
    return asyncio.run(main)
