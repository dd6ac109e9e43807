"""A real server in a thread of the test's process, and clients in threads, over real gRPC on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from sl_client.console.show import ClientLines
from sl_client.training.runner import Runner
from sl_client.transport.access import PLAINTEXT, Access
from sl_client.transport.stream import ClientStream, GrpcStream, StreamBroken
from sl_common.config.run_config import RunConfig
from sl_common.messages.facts import Fact
from sl_common.messages.training import Bye
from sl_common.network.network import Network
from sl_common.wire import Greeting, read_answer
from sl_server.core.coordinator import Coordinator
from sl_server.security.credentials import Credentials
from sl_server.telemetry.ledger import Ledger
from sl_server.telemetry.metrics import Metrics
from sl_server.training.engine import Engine
from sl_server.transport import server as grpc_server


class Quiet(ClientLines):
    """Remembers what a person would have seen."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []

    def say(self, event: str, text: str, **fields: object) -> None:  # noqa: ARG002
        self.events.append(event)


class LiveServer:
    """Engine, service, metrics and ledger as `sl-server run` puts them together, without files and signals."""

    def __init__(self, config: RunConfig) -> None:
        self.ledger = Ledger()
        self.metrics = Metrics(self.ledger, config)
        self.coordinator = Coordinator(config, Network.build(config), alone=threading.Lock())
        self.facts: list[Fact] = []
        self.warnings: list[str] = []
        self.over = threading.Event()
        self.engine = Engine(
            self.coordinator,
            ledger=self.ledger,
            metrics=self.metrics,
            on_fact=self.facts.append,
            on_end=self.over.set,
            warn=self.warnings.append,
        )
        self.address = ""

    def sample(self, name: str, **labels: str) -> float:
        """A metric's value now."""
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


@contextmanager
def serving(config: RunConfig, door: Credentials | None = None) -> Iterator[LiveServer]:
    """A live server; stopped at the end whatever happened."""
    live = LiveServer(config)
    door = door or Credentials()
    door.attach(live.warnings.append)
    loop = asyncio.new_event_loop()
    started = threading.Event()

    async def serve() -> None:
        server, port = await grpc_server.start(live.engine.inbox, "127.0.0.1:0", door)
        live.address = f"127.0.0.1:{port}"
        live.engine.start()
        started.set()
        while not live.over.is_set():
            await asyncio.sleep(0.02)
        await server.stop(grace=1.0)

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert started.wait(20)
    try:
        yield live
    finally:
        live.engine.stop("the test is over")
        thread.join(30)
        loop.close()
        assert not thread.is_alive()


class ClientThread(threading.Thread):
    """`sl-client run` in a thread: how it ended is in `bye` or `error`."""

    def __init__(self, address: str, connect: Callable[[str], ClientStream] = GrpcStream, **options: object) -> None:
        super().__init__()
        self.show = Quiet()
        self.runner = Runner(address, show=self.show, connect=connect, allowed=None, **options)
        self.bye: Bye | None = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.bye = self.runner.run()
        except BaseException as error:  # the test looks at it
            self.error = error


class FlakyCarrier(GrpcStream):
    """A real stream that breaks after so many frames, counting both directions; later ones are lost."""

    def __init__(self, server: str, frames: int, access: Access = PLAINTEXT, **call: str) -> None:
        super().__init__(server, access, **call)
        self._left = frames

    def send(self, frame: bytes) -> None:
        if self._left > 0:
            super().send(frame)
        self._left -= 1

    def receive(self) -> bytes:
        if self._left <= 0:
            self._call.end()  # what was sent before the cut arrives, so that there is progress
            with contextlib.suppress(StreamBroken):
                while True:
                    super().receive()
            raise StreamBroken("the test cut this stream")
        self._left -= 1
        return super().receive()


class OfBefore(GrpcStream):
    """A real stream to a server that greets as if it spoke the wire version before, whoever comes."""

    def __init__(self, server: str, **call: str) -> None:
        super().__init__(server, **call)
        self._greeted = False

    def receive(self) -> bytes:
        frame = super().receive()
        if not self._greeted:
            self._greeted = True
            greeting = read_answer(frame)
            assert isinstance(greeting, Greeting)
            return replace(greeting, version=1, software="0.0.9\x1b").to_frame()
        return frame
