"""A whole federation in memory whose network can be slow, reordered between clients, cut anywhere and joined late.

Everything in it is the real thing: coordinator, sessions, endpoints, flows, data. Only the streams are queues of frames, and a
seeded scheduler decides what happens next.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field, replace

import torch

from sl_client.training.seat import take_seat
from sl_common.client.flow import Flow
from sl_common.client.program import participate
from sl_common.client.seat import Seat
from sl_common.client.snapshots import Snapshots
from sl_common.codec import Link
from sl_common.config.run_config import RunConfig
from sl_common.errors import WireError
from sl_common.messages.events import Advanced, Event
from sl_common.messages.facts import Fact
from sl_common.messages.training import Alive, Welcome
from sl_common.network.network import Network
from sl_common.training.segment import Segment
from sl_common.wire import Endpoint, Hello
from sl_server.core.alignments import Job
from sl_server.core.coordinator import Coordinator
from sl_server.core.sessions import Session, Sessions


def make_config(preset: str, **overrides: object) -> RunConfig:
    """A small run on the embedded digits; `section__key=value` overrides."""
    toml = (
        f'[protocol]\npreset = "{preset}"\n[model]\nname = "mlp"\nargs = {{ hidden = [16] }}\n[data]\nbatch_size = 32\n'
    )
    base = {"run.rounds": 2, "run.clients": 3, "client.wave": "{ steps = 3 }"}
    if preset == "cse_fsl":  # its own 5 would send none of so few batches
        base["protocol.learner.send_every"] = 2
    settings = base | {key.replace("__", "."): value for key, value in overrides.items()}
    return RunConfig.from_toml(toml, [f"{key}={value}" for key, value in settings.items()])


@dataclass(eq=False)
class Client:
    """One client and the two directions of its stream."""

    session: Session
    endpoint: Endpoint
    life: bytes
    up: deque[bytes] = field(default_factory=deque)
    down: deque[bytes] = field(default_factory=deque)
    seat: Seat | None = None
    past: Snapshots | None = None

    def final_snapshots(self) -> Snapshots | None:
        """What the next life can go on from, if this process lives on."""
        return self.past if self.seat is None else self.seat.final_snapshots()

    flow: Flow | None = None
    said: int = 0  # messages
    streams: int = 0  # after the first
    gone: bool = False


class World:
    """Drive it with `run`; `cut`, `lose` and `join` may happen at any time."""

    def __init__(self, config: RunConfig, seed: int = 0) -> None:
        self.config = config
        self.coordinator = Coordinator(config, Network.build(config))
        self.sessions = Sessions(self.coordinator, incarnation=1)
        self.events: list[tuple[str, Event | Advanced]] = []
        self.sessions.log = self.events
        self.facts: list[Fact] = []
        self.said: list = []  # everything the coordinator said
        self.clients: dict[str, Client] = {}
        self.jobs: list[Job] = []  # alignments under way; they end at any time
        self.slow: set[str] = set()  # clients whose streams carry nothing for now
        self.expelled: dict[str, str] = {}  # clients whose fault the server's work found, and how
        self.stuck: set[str] = set()  # clients whose alignments never end
        self.leave_after: dict[str, int] = {}  # client -> messages after which it is gone
        self.cut_every: int | None = None  # frames, both directions together
        self.cuts = 0
        self.slow_share = 0.0  # of the cuts: the link is said to be slow then, and what was lost is cut anew
        self.anew = 0  # such cuts in the middle of a message
        self._carried = 0
        self._now = 0.0
        self._lives = 0
        self._random = random.Random(seed)

    def join(self, name: str = "", past: Snapshots | None = None) -> Client:
        """A new client, or a new life of one; `past`: what it has from a former life."""
        self._lives += 1
        life = self._lives.to_bytes(16, "big")
        opened = self.sessions.open(Hello(life=life, client=name))
        network = self.coordinator.network
        client = Client(
            session=opened.session,
            endpoint=Endpoint("client", link=Link(), limit_bytes=network.limit_bytes),
            life=life,
            past=past,
        )

        def sit(welcome: Welcome) -> Seat:
            client.seat = self.take_seat(welcome)
            if client.past is not None:
                client.seat = replace(client.seat, snapshots=client.past)
            draw = self.config.draw_of(welcome.shard)
            window = self.config.client.window
            client.endpoint.agree(self.config.codec, client.seat.limit_bytes, draw, client.seat.residuals, window)
            return client.seat

        client.flow = Flow(participate(sit))
        self.clients[opened.session.client] = client
        return client

    def take_seat(self, welcome: Welcome) -> Seat:
        """As a client does that holds the embedded data."""
        return take_seat(welcome, data=None, allowed=None)

    def cut(self, client: Client) -> None:
        """The stream breaks: frames under way are lost; both sides resume on a new one."""
        self.cuts += 1
        client.up.clear()
        client.down.clear()
        slow = self.slow_share > 0 and self._random.random() < self.slow_share
        self.anew += slow and (client.endpoint.missing > 0 or client.session.endpoint.missing > 0)
        client.streams += 1
        hello = Hello(
            life=client.life, received=client.endpoint.received, resume=True, stream=client.streams, slow=slow
        )
        opened = self.sessions.open(hello)
        assert opened.greeting.resumed
        client.down.extend(frame.data for frame in opened.resend)
        client.up.extend(frame.data for frame in client.endpoint.resend(opened.greeting.received, slow=slow))

    def lose(self, client: Client) -> None:
        """The client is gone for good."""
        if not client.gone:
            client.gone = True
            self.sessions.lose(client.session, "the test took it away")

    def run(self, until: int | None = None) -> World:
        """Let things happen in a random order until nothing can, or so many things have."""
        done = 0
        while until is None or done < until:
            actions = self._actions()
            if not actions:
                return self
            self._random.choice(actions)()
            done += 1
        return self

    def _actions(self) -> list:
        actions = []
        for client in self.clients.values():
            if client.gone or client.session.client in self.slow:
                continue
            if client.up:
                actions.append(lambda c=client: self._carry_up(c))
            if client.down:
                actions.append(lambda c=client: self._carry_down(c))
        actions += [lambda j=job: self._finish(j) for job in self.jobs if job.client not in self.stuck]
        return actions or ([self._advance] if self._can_advance() else [])

    def _finish(self, job: Job) -> None:
        self.jobs.remove(job)
        try:
            result = job.run()
        except WireError as error:
            client = self.clients[job.client]
            client.gone = True
            self.expelled[job.client] = str(error)
            self.sessions.lose(client.session, f"broke the protocol: {error}")
            return
        self.sessions.aligned(job.client, result)

    def _can_advance(self) -> bool:
        self.turn = turn = self.sessions.advance()
        for session, error in self.sessions.end_expelled(turn):
            self.clients[session.client].gone = True
            self.expelled[session.client] = str(error)
        self.jobs += turn.jobs
        self.facts += turn.facts()
        return turn.worked

    def _advance(self) -> None:
        self.said += self.turn.messages
        for name, message in self.turn.messages:
            client = self.clients[name]
            client.down.extend(frame.data for frame in client.session.endpoint.pack(message))

    def _clock(self) -> float:
        """Seconds; some frames take long, others do not."""
        self._now += self._random.choice((0.001, 3.0)) if self.slow_share else 0.0
        return self._now

    def _carried_one(self, client: Client) -> bool:
        self._carried += 1
        if self.cut_every and self._carried % self.cut_every == 0:
            self.cut(client)
            return True
        return False

    def _carry_up(self, client: Client) -> None:
        if not self._carried_one(client):
            self.sessions.feed(client.session, client.up.popleft())
            client.down.extend(frame.data for frame in client.session.endpoint.due(self._clock()))

    def _carry_down(self, client: Client) -> None:
        if self._carried_one(client):
            return
        received = client.endpoint.feed(client.down.popleft())
        client.up.extend(frame.data for frame in client.endpoint.due(self._clock()))
        if received.message is None:
            return
        client.flow.deliver(received.message)
        for message in client.flow.run():
            if isinstance(message, Alive):
                continue
            client.said += 1
            client.up.extend(frame.data for frame in client.endpoint.pack(message))
            if client.said == self.leave_after.get(client.session.client):
                self.lose(client)
                return

    # --- results

    def lower(self, name: str) -> dict[str, torch.Tensor]:
        """A client's lower segment as it is on the client."""
        return self.clients[name].seat.bank.get("lower").state()


def run_world(config: RunConfig, seed: int = 0, *, cut_every: int | None = None) -> World:
    """All clients at once, to the end."""
    world = World(config, seed)
    world.cut_every = cut_every
    for _ in range(config.run.clients):
        world.join()
    return world.run()


def segment_of(world: World, part: str = "head") -> Segment:
    """A segment on the server."""
    return world.coordinator.bank.get(part)
