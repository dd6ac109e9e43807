"""A whole run in one process: the same core, the same endpoints for every message, and no network.

The only module that knows both sides. Its result equals that of separate processes bit for bit wherever the protocol's
result does not depend on timing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import torch

from sl_client.training.seat import take_seat
from sl_common.client.flow import Flow
from sl_common.client.program import participate
from sl_common.client.seat import Seat
from sl_common.config.run_config import RunConfig
from sl_common.messages.facts import Fact
from sl_common.messages.training import Alive, Message, ToClient, ToServer, Welcome
from sl_common.network.network import Network
from sl_common.wire import Endpoint, Frame, Hello
from sl_server.core.coordinator import Coordinator
from sl_server.core.preflight import preflight
from sl_server.core.sessions import Session, Sessions
from sl_server.storage.spill import DiskSpill
from sl_server.telemetry.ledger import Direction
from sl_server.training.workers import run_timed

Count = Callable[[Direction, Frame | Message], None]  # called with every frame and every message


class SimulatedClient:
    """A client's flow and endpoint, driven in memory."""

    def __init__(self, sessions: Sessions, number: int, seat: Callable[..., Seat], count: Count) -> None:
        self.seat: Seat | None = None
        self._take_seat = seat
        self._sessions = sessions
        self._count = count
        self.flow = Flow(participate(self._sit))
        opened = sessions.open(Hello(life=number.to_bytes(16, "big"), shard=number))
        self.session: Session = opened.session
        network, config = sessions.coordinator.network, sessions.coordinator.config
        draw = config.draw_of(number)
        window, limit_bytes = config.client.window, network.limit_bytes
        self.endpoint = Endpoint("client", link=config.codec, limit_bytes=limit_bytes, draw=draw, window=window)

    def _sit(self, welcome: object) -> Seat:
        self.seat = self._take_seat(welcome)
        return self.seat

    def deliver(self, message: ToClient) -> None:
        """Deliver a message of the server to this client."""
        self.flow.deliver(self.receive(message))

    def receive(self, message: ToClient) -> ToClient:
        """Return a message of the server as this client's endpoint decodes it."""
        self._count("down", message)
        for frame in self.session.endpoint.pack(message):
            self._count("down", frame)
            received = self.endpoint.feed(frame.data)
        assert received.message is not None
        return received.message  # type: ignore[return-value]

    def advance(self) -> bool:
        """Run until the client must wait; return True if it sent anything."""
        sent = False
        for message in self.flow.run():
            if isinstance(message, Alive):
                continue
            sent = True
            self.send(message)
        return sent

    def send(self, message: ToServer) -> None:
        """Send a message of this client to the server."""
        self._count("up", message)
        for frame in self.endpoint.pack(message):
            self._count("up", frame)
            self._sessions.feed(self.session, frame.data)


def first_seat(config: RunConfig, data: Path | None, allowed: Collection[str] | None) -> Seat:
    """Return the seat of the client with the first shard. Raises ConfigError or DataError if it could not take part."""
    welcome = Welcome(config=config.to_json(), client="c0", shard=0, shards=config.shards)
    return take_seat(welcome, data=data, allowed=allowed)


class Simulation:
    """One run in this process. `facts` runs it to the end and yields its facts."""

    def __init__(
        self,
        config: RunConfig,
        *,
        data: Path | None = None,
        allowed: Collection[str] | None = None,
        device: str = "cpu",
        client_device: str = "cpu",
        count: Count = lambda _direction, _sent: None,
    ) -> None:
        torch.set_num_threads(config.run.threads)
        network = Network.build(config, allowed)
        preflight(config, network)
        self.coordinator = Coordinator(config, network, device=device, spill=DiskSpill())
        self.sessions = Sessions(self.coordinator, incarnation=1)
        self._count = count
        self._clients: dict[str, SimulatedClient] = {}
        for number in range(config.run.clients):
            client = SimulatedClient(
                self.sessions,
                number,
                lambda welcome: take_seat(welcome, data=data, allowed=allowed, device=client_device),
                count,
            )
            self._clients[client.session.client] = client

    @property
    def seats(self) -> dict[int, Seat]:
        """The clients' seats, by shard."""
        return {c.seat.shard: c.seat for c in self._clients.values() if c.seat is not None}

    def facts(self) -> Iterator[Fact]:
        """Run to the end. The order of the clients is fixed: by shard, each until it waits."""
        moved = True
        while moved:
            moved = False
            while (turn := self.sessions.advance()).worked:
                moved = True
                # a client of this simulation was expelled: a bug or bad data
                for _session, error in self.sessions.end_expelled(turn):
                    raise error
                for name, message in turn.messages:
                    self._deliver(self._clients[name], message)
                yield from turn.facts()
                for job in turn.jobs:  # run immediately: the result does not depend on the moment
                    result, fact = run_timed(job)
                    self.sessions.aligned(job.client, result)
                    yield fact
            yield from turn.facts()
            for sent in self._run_clients():
                moved = sent or moved

    def _deliver(self, client: SimulatedClient, message: ToClient) -> None:
        client.deliver(message)

    def _run_clients(self) -> Iterator[bool]:
        """Run each client in turn until it waits; yield True for each that sent anything."""
        for client in self._clients.values():
            yield client.advance()

    def run(self) -> list[Fact]:
        """Return all facts of the whole run."""
        return list(self.facts())
