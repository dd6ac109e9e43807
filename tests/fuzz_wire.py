"""What comes over the network, into everything that reads it: endpoints, greetings, a run's sessions, probes, event logs.

A target makes an input, and reads it and says how it ended; whatever but the typed refusal comes out of it is a finding, and so is an
input that costs more than its budget.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from mutations import misfiled, mutated, swollen_text, swollen_tree
from recorded import parts, record
from world import make_config

from sl_common.config.run_config import RunConfig
from sl_common.errors import ConfigError, Refused, WireError
from sl_common.network.network import Network
from sl_common.proto import split_pb2 as pb
from sl_common.wire import Endpoint, Frame, Greeting, Hello, Refusal, eventlog, probe, read_answer
from sl_server.core.coordinator import Coordinator
from sl_server.core.sessions import Sessions
from sl_server.simulation.simulation import Simulation


@dataclass(frozen=True, slots=True)
class Target:
    """`make`: the hostile bytes, and what else the reading needs. `read` may be done again with the same."""

    make: Callable[[random.Random], tuple[bytes, Any]]
    read: Callable[[bytes, Any], str]


LIMIT = 1 << 16
FRAMES = {"up": pb.ClientFrame, "down": pb.ServerFrame}
CODED = {
    "codec__up": '{ kind = "topk", r = 0.5 }',
    "codec__down": '{ kind = "float8" }',
    "codec__state": '{ kind = "float16" }',
}
CONFIGS = {"plain": {}, "coded": CODED}


@lru_cache
def config_of(name: str) -> RunConfig:
    return make_config("splitfed_v1", run__clients=1, run__rounds=2, **CONFIGS[name])


@lru_cache
def talk(name: str) -> dict[str, list[bytes]]:
    """All that a client and its server say to each other in a whole run, as frames."""
    said: dict[str, list[bytes]] = {"up": [], "down": []}

    def note(direction: str, what: object) -> None:
        if isinstance(what, Frame):
            said[direction].append(what.data)

    Simulation(config_of(name), count=note).run()
    return said


@lru_cache
def events(name: str) -> bytes:
    """An event log of a whole run."""
    simulation = Simulation(config_of(name))
    kept: list = []
    simulation.sessions.log = kept
    simulation.run()
    return b"".join(eventlog.dump(*entry) for entry in kept)


@lru_cache
def records(name: str) -> list[tuple[bytes, bytes, list[bytes]]]:
    """The same log, each record taken apart."""
    found, data = [], events(name)
    while data:
        *one, data = parts(data)
        found.append((one[0], one[1], one[2]))
    return found


def wrong(frame: bytes, direction: str, rng: random.Random) -> bytes:
    """One valid frame, slightly wrong: in its bytes, or in a field."""
    if rng.random() < 0.4:
        return mutated(frame, rng, talk("plain")[direction])
    message = FRAMES[direction].FromString(frame)
    for _ in range(rng.randint(1, 2)):
        misfiled(message, rng)
    return bytes(message.SerializeToString())


def _stretch(rng: random.Random) -> tuple[bytes, tuple[str, str, int]]:
    """A stretch of a conversation from its beginning on, with one frame wrong."""
    direction, name = rng.choice(("up", "down")), rng.choice(("plain", "coded"))
    frames = talk(name)[direction]
    until = rng.randint(1, min(6, len(frames)))
    return wrong(frames[until - 1], direction, rng), (direction, name, until)


def _endpoint(data: bytes, rest: tuple[str, str, int]) -> str:
    """Into a fresh one."""
    direction, name, until = rest
    frames = talk(name)[direction]
    side: Literal["server", "client"] = "server" if direction == "up" else "client"
    end = Endpoint(side, link=config_of(name).codec, limit_bytes=LIMIT, draw=config_of(name).draw_of(0))
    end.delivery.sent = 1 << 20  # what the frames acknowledge
    try:
        for frame in frames[: until - 1]:
            end.feed(frame)
        received = end.feed(data)
        for frame in frames[until : until + 2]:
            end.feed(frame)
    except WireError:
        return "wire error"
    except Refused:
        return "refused"
    return "taken" if received.message is not None else "waits"


HELLO = Hello(life=bytes(16), client="c0", shard=0, shards=3, software="0.1").to_frame()
OPENINGS = (
    Greeting(client="c0", received=3, resumed=True, incarnation=7, software="0.1").to_frame(),
    Refusal(code="full", reason="no more places").to_frame(),
    HELLO,
)


def _opening(rng: random.Random) -> tuple[bytes, bool]:
    """The first frame of either side, and whether it is the client's."""
    frame = rng.choice(OPENINGS)
    if rng.random() < 0.5:
        message = (pb.ClientFrame if frame is HELLO else pb.ServerFrame).FromString(frame)
        misfiled(message, rng)
        data = message.SerializeToString()
    else:
        data = mutated(frame, rng, OPENINGS)
    return data, frame is HELLO


def _greeting(data: bytes, is_hello: bool) -> str:
    try:
        (Hello.from_frame if is_hello else read_answer)(data)
    except WireError:
        return "wire error"
    return "taken"


PING = probe.ping(50, 40)


def _ping(data: bytes, is_answer: bool) -> str:
    """What `sl-client doctor` sends, or is answered."""
    try:
        if is_answer:
            probe.read_pong(data)
        else:
            assert len(probe.answer(data)) < probe.MAX_PAYLOAD + 100
    except (ValueError, WireError):
        return "refused"
    return "answered"


def _record(rng: random.Random) -> tuple[bytes, None]:
    """A stretch of a recorded run's file."""
    data = events("plain")
    if rng.random() < 0.3:  # wrong in its checksums, too
        start = rng.choice((0, 0, rng.randrange(len(data))))
        return mutated(data[start : start + rng.choice((400, 4000))], rng), None
    name, header, bodies = rng.choice(records("plain"))
    which = rng.randrange(3)
    name = mutated(name, rng) if which == 0 and name else name
    header = mutated(header, rng) if which == 1 else header
    bodies = [mutated(body, rng) if which == 2 and body else body for body in bodies]
    return record(name, header, bodies), None


def _event_log(data: bytes, _: None) -> str:
    try:
        read = list(eventlog.load_events(data))
    except WireError:
        return "wire error"
    return "read" if read else "nothing in it"


def _handed_out(rng: random.Random) -> tuple[bytes, None]:
    """A configuration as a server hands it to a client."""
    good = config_of("coded").to_json()
    chance = rng.random()
    if chance < 0.04:
        tree = json.loads(good)
        swollen_tree(tree, rng)
        return json.dumps(tree).encode(), None
    if chance < 0.08:
        at = rng.choice((0, 1, len(good) - 1, good.index(":", rng.randrange(len(good) // 2)) + 1))
        return (good[:at] + swollen_text(rng) + good[at:]).encode(errors="replace"), None
    return mutated(good.encode(), rng), None


def _configuration(data: bytes, _: None) -> str:
    try:
        RunConfig.from_json(data.decode(errors="replace"))
    except ConfigError:
        return "config error"
    return "taken"


class Run:
    """A real run's sessions, whose only client is a hostile one with one life after another."""

    def __init__(self) -> None:
        config = config_of("plain")
        self.sessions = Sessions(Coordinator(config, Network.build(config)), incarnation=1)
        self.lives = 0

    @property
    def fresh(self) -> bool:
        """It is where the recorded conversation begins."""
        return self.sessions.coordinator.completed_waves == 0 and self.sessions.coordinator.ended is None

    def once(self, data: bytes, resume: bool, received: int, bad: int) -> str:
        """A life: some valid frames, a wrong one, and what followed; the coordinator works in between as the engine lets it."""
        self.lives += 1
        hello = Hello(life=self.lives.to_bytes(16, "little"), client="evil", resume=resume, received=received)
        frames = talk("plain")["up"]
        try:
            session = self.sessions.open(hello).session
            for number, frame in enumerate(frames[: bad + 3]):
                self.sessions.feed(session, data if number == bad else frame)
                while (turn := self.sessions.advance()).worked:
                    for _client, message in turn.messages:
                        session.endpoint.pack(message)
                    turn.facts()
                if session.closed:
                    return "left"
        except WireError:
            return "wire error"
        except Refused:
            return "refused"
        return "stays"


_RUNS: list[Run] = []


def _life(rng: random.Random) -> tuple[bytes, tuple[bool, int, int]]:
    """A wrong frame, and where in a life of what kind it comes."""
    frames = talk("plain")["up"]
    bad = rng.randrange(min(8, len(frames)))
    return wrong(frames[bad], "up", rng), (rng.random() < 0.1, rng.choice((0, 0, 0, 3)), bad)


def _session(data: bytes, rest: tuple[bool, int, int]) -> str:
    """A client of a run, down to the coordinator."""
    if not _RUNS or not _RUNS[0].fresh:
        _RUNS[:] = [Run()]
    return _RUNS[0].once(data, *rest)


TARGETS: dict[str, Target] = {
    "endpoint": Target(_stretch, _endpoint),
    "session": Target(_life, _session),
    "greeting": Target(_opening, _greeting),
    "probe": Target(lambda rng: (mutated(PING, rng), rng.random() < 0.3), _ping),
    "event log": Target(_record, _event_log),
    "handed-out config": Target(_handed_out, _configuration),
}
