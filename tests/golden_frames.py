"""The committed frames of whole conversations: `python tests/golden_frames.py` writes them anew after the wire was changed on purpose.

One line a frame, as JSON: who sent it, every field of its header, its chunk and its bytes; long bytes by their SHA-256. What is not
compared byte for byte: `software`, which changes with every release, and the configuration in Welcome and Offer, which lies beside the
frames as JSON and of which the keys known then must have the values they had then. Deflated tensors are not in here: their bytes
are zlib's.

Tensors are compared to the last bit too, which a trained network's are not on another processor. So what is trained is `exact.py`, whose
arithmetic rounds nowhere, and the codecs of the second run keep it so: they choose, or shorten, and scale nothing.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import deque
from collections.abc import Callable, Iterator, MutableSequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message as Header

from sl_client.training.seat import take_seat
from sl_common import __version__
from sl_common.client.flow import Flow
from sl_common.client.program import participate
from sl_common.client.seat import Seat
from sl_common.codec import BFloat16, Feedback, Float16, Link, Masked, RandTopK
from sl_common.config.run_config import RunConfig
from sl_common.errors import Refused
from sl_common.messages.inference import Fetch, Lower, Offer, Query, Scores
from sl_common.messages.training import (
    Aligned,
    Alive,
    Begin,
    Bye,
    Directive,
    Done,
    Gradient,
    Late,
    Leave,
    Message,
    Ready,
    Smashed,
    Welcome,
)
from sl_common.network.network import Network
from sl_common.proto import split_pb2 as pb
from sl_common.wire import Endpoint, Frame, Hello, Refusal, Timing, probe
from sl_server.core.coordinator import Coordinator
from sl_server.core.sessions import Sessions
from sl_server.simulation.simulation import Simulation

FOLDER = Path(__file__).with_name("golden") / "frames"
SHORT = 48  # bytes that are written out
SOFTWARE = "?"
CODECS = Link(
    up=RandTopK(r=0.5, alpha=0.25, values="float16"),
    down=Masked(of=Float16()),
    state=Feedback(of=BFloat16()),
)
Line = dict[str, Any]


@dataclass
class Recorder:
    """Frames as they go out, and the configuration that was in them."""

    lines: list[Line] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)

    def up(self, who: str, data: bytes) -> None:
        """From a client."""
        self._note(f"{who} → server", data, pb.ClientFrame.FromString(data))

    def down(self, who: str, data: bytes) -> None:
        """To a client."""
        self._note(f"{who} ← server", data, pb.ServerFrame.FromString(data))

    def note(self, text: str) -> None:
        """What happens between frames."""
        self.lines.append({"then": text})

    def ping(self, way: str, data: bytes) -> None:
        """A frame of the other call, Probe."""
        self._note(way, data, pb.Ping.FromString(data))

    def _note(self, way: str, data: bytes, frame: Any) -> None:
        data = self._masked(data, frame)
        fields = {name: value for name, value in read(frame).items() if name != "chunk"}
        chunk = {"chunk": shown(frame.chunk)} if getattr(frame, "chunk", b"") else {}
        self.lines.append({"way": way, **fields, **chunk, "frame": shown(data)})

    def _masked(self, data: bytes, frame: Any) -> bytes:
        """Without what may change; `frame` is changed too. The bytes of all other frames are left as they came."""
        name = frame.WhichOneof("header") if not isinstance(frame, pb.Ping) else None
        header = frame if name is None else getattr(frame, name)
        if name in ("welcome", "offer"):
            self.config = self.config or json.loads(header.config)
            assert self.config == json.loads(header.config)
            header.config = ""
        elif name == "refusal" and __version__ in header.reason:
            header.reason = header.reason.replace(__version__, SOFTWARE)
        elif getattr(header, "software", ""):
            header.software = SOFTWARE
        else:
            return data
        return frame.SerializeToString()  # type: ignore[no-any-return]


def shown(data: bytes) -> str:
    """Bytes for people, none of them lost on a comparison."""
    return data.hex() if len(data) <= SHORT else f"{len(data)} bytes, sha256 {hashlib.sha256(data).hexdigest()}"


def read(header: Header) -> dict[str, Any]:
    """Every field that is set, by name."""
    return {descriptor.name: _value(descriptor, value) for descriptor, value in header.ListFields()}


def _value(descriptor: FieldDescriptor, value: Any) -> Any:
    if isinstance(value, MutableSequence):
        return [_one(descriptor, one) for one in value]
    return _one(descriptor, value)


def _one(descriptor: FieldDescriptor, value: Any) -> Any:
    if descriptor.type == FieldDescriptor.TYPE_MESSAGE:
        return read(value)
    if descriptor.type == FieldDescriptor.TYPE_ENUM:
        return descriptor.enum_type.values_by_number[value].name
    return shown(value) if isinstance(value, bytes) else value


# --- what is recorded


def exact_config(preset: str, link: Link | None = None, **overrides: object) -> RunConfig:
    """A small exact run of two clients."""
    settings = {
        "run.name": '"golden"',
        "run.clients": 2,
        "run.rounds": 2,
        "model.name": '"exact:net"',
        "model.input": "[4]",
        "model.classes": 4,
        "data.name": '"exact:data"',
        "data.batch_size": 4,
        "client.wave": "{ steps = 1 }",
        "client.optimizer": '{ kind = "sgd", lr = 0.000030517578125 }',  # 2 ** -15
        "server.optimizer": '{ kind = "sgd", lr = 0.000030517578125 }',
        "eval.every": 0,
    } | {key.replace("__", "."): value for key, value in overrides.items()}
    config = RunConfig.from_toml(f'protocol.preset = "{preset}"', [f"{key}={value}" for key, value in settings.items()])
    return config if link is None else config.model_copy(update={"codec": link})


def simulated(config: RunConfig) -> tuple[Recorder, list[Message]]:
    """Every frame of the simulator's endpoints, and every message."""
    simulation, recorder, messages = Simulation(config), Recorder(), []
    for name, client in simulation._clients.items():

        def count(direction: str, sent: Frame | Message, name: str = name) -> None:
            if isinstance(sent, Frame):
                (recorder.up if direction == "up" else recorder.down)(name, sent.data)
            else:
                messages.append(sent)

        client._count = count
    simulation.run()
    return recorder, messages


def plain() -> Recorder:
    """Tensors as they are."""
    return simulated(exact_config("parallel"))[0]


def with_codecs() -> Recorder:
    """Activations, gradients and weights encoded, weights with feedback; evaluated after each round."""
    return simulated(exact_config("splitfed_v1", CODECS, eval__every=1))[0]


class Wire:
    """One client and one server whose streams break where the script says; fixed lives, fixed incarnation, no chance."""

    LIFE = bytes(range(16))

    def __init__(self, config: RunConfig, recorder: Recorder) -> None:
        self.config, self.recorder = config, recorder
        self.coordinator = Coordinator(config, Network.build(config))
        self.sessions = Sessions(self.coordinator, incarnation=7)
        self.flow = Flow(participate(self._sit))
        self.client = Endpoint("client", link=Link(), limit_bytes=1 << 20, chunk_bytes=40)  # a batch takes four frames
        self.up: deque[bytes] = deque()
        self.down: deque[bytes] = deque()
        self.session = self.greet(resume=False)
        self.carried = 0

    def _sit(self, welcome: Welcome) -> Seat:
        seat = take_seat(welcome, data=None, allowed=None)
        self.client.agree(self.config.codec, seat.limit_bytes, self.config.draw_of(welcome.shard), seat.residuals)
        return seat

    def greet(self, *, resume: bool) -> Any:
        """A new stream: Hello, Greeting, and what each side lacks."""
        hello = Hello(
            life=self.LIFE,
            client="device",
            received=self.client.received,
            resume=resume,
            shard=0,
            shards=1,
            software=__version__,
        ).to_frame()
        self.recorder.up("device", hello)
        opened = self.sessions.open(Hello.from_frame(hello))
        self.recorder.down("device", opened.greeting.to_frame())
        self.up.clear()
        self.down.clear()
        self._tell(opened.resend)
        self._say(self.client.resend(opened.greeting.received))
        return opened.session

    def _say(self, frames: list[Frame]) -> None:
        for frame in frames:
            self.recorder.up("device", frame.data)
            self.up.append(frame.data)

    def _tell(self, frames: list[Frame]) -> None:
        for frame in frames:
            self.recorder.down("device", frame.data)
            self.down.append(frame.data)

    def run(self, cuts: tuple[int, ...]) -> None:
        """To the end; after so many frames were heard, counted over both directions, the stream breaks."""
        left = deque(cuts)
        while self.up or self.down or self._advance():
            if left and self.carried == left[0]:
                left.popleft()
                on_their_way = f"{len(self.up)} frames up and {len(self.down)} down"
                self.recorder.note(f"the stream breaks; on their way are {on_their_way}")
                self.greet(resume=True)
            elif self.up or self.down:
                self._carry()
                self.carried += 1

    def _advance(self) -> bool:
        turn = self.sessions.advance()
        for _, message in turn.messages:
            self._tell(self.session.endpoint.pack(message))
        return turn.worked

    def _carry(self) -> None:
        if self.up:
            self.sessions.feed(self.session, self.up.popleft())
            return
        received = self.client.feed(self.down.popleft())
        if received.message is None:
            return
        self.flow.deliver(received.message)  # type: ignore[arg-type]
        for message in self.flow.run():
            if not isinstance(message, Alive):
                self._say(self.client.pack(message))


def cut_and_resumed() -> Recorder:
    """A run whose stream breaks within a batch, with a reply on its way, and before the end; then no's to two Hellos."""
    recorder = Recorder()
    wire = Wire(exact_config("splitfed_v1", run__clients=1, run__rounds=1, client__wave="{ steps = 2 }"), recorder)
    wire.run(cuts=(5, 7, 26))
    last = wire.client.acknowledgement(at_once=True)
    assert last is not None
    wire._say([last])
    recorder.note("the server is started anew and knows nothing")
    sessions = Sessions(Coordinator(wire.config, Network.build(wire.config)), incarnation=8)
    for hello in (
        Hello(life=wire.LIFE, client="device", received=9, resume=True, software=__version__),
        Hello(life=wire.LIFE, client="device", version=1, software=__version__),
    ):
        recorder.up("device", hello.to_frame())
        try:
            sessions.open(hello)
        except Refused as error:
            recorder.down("device", Refusal(code=error.code, reason=error.reason).to_frame())
    return recorder


def numbers(*shape: int) -> torch.Tensor:
    """Halves, of both signs."""
    count = torch.Size(shape).numel()
    return (torch.arange(count).remainder(13) - 6).float().view(shape) / 2


STATE = {"lower": {"0.weight": numbers(2, 3), "0.count": torch.tensor(5)}, "aux": {}}
TRAINED: tuple[Message, ...] = (
    Ready(samples=359, batches=6, snapshots=(3, 4), intact=True),
    Smashed(step=4, round=2, wave=1, z=numbers(2, 3), y=torch.tensor([3, 0])),
    Smashed(step=5, round=2, wave=1, z=numbers(2, 3).half(), y=torch.tensor([3, 0]), train=True, needs_grad=False),
    Done(round=2, wave=1, steps=5, samples=9, loss_sum=1.25, weights=STATE, digests={"lower": bytes(range(32))}),
    Alive(samples=7),
    Leave(reason="stopped by its user"),
    Welcome(config='{"run": {"name": "golden"}}', client="device", shard=1, shards=3, run="0123456789abcdef"),
    Begin(
        round=2,
        rounds=9,
        wave=1,
        wave_size=3,
        steps=5,
        first=20,
        lr=0.125,
        weights=STATE,
        upload=("lower", "aux"),
        directive=Directive(send=True, update=False, align=True, warm=True),
        checkpoint=6,
        restore=5,
        intact=True,
    ),
    Begin(round=2, rounds=9, evaluate=True, slice=1, slices=3, samples=300),
    Gradient(step=4, loss=2.5, dz=numbers(2, 3)),
    Gradient(step=5, loss=0.5, correct=2),
    Aligned(round=2, wave=1, weights={"aux": STATE["lower"]}, before=0.75, after=0.25),
    Late(round=2, wave=1),
    Bye(reason="all rounds are done", finished=True),
)
ASKED: tuple[Message, ...] = (
    Offer(config='{"run": {"name": "golden"}}', lower_sha256=bytes(range(32))),
    Fetch(),
    Lower(weights={"lower": STATE["lower"]}),
    Query(step=3, z=numbers(2, 3)),
    Scores(step=3, scores=numbers(2, 4)),
)
OF_CLIENTS = (Ready, Smashed, Done, Alive, Leave, Fetch, Query)


def one_of_each() -> Recorder:
    """Each message once or twice with whatever it can hold, to train and to infer; a ping and its answer."""
    recorder = Recorder()
    timing = Timing(step=3, forward=0.5, encode=0.25, round_trip=2.0, decode=0.125, backward=1.5)
    for call, messages in (("train", TRAINED), ("infer", ASKED)):
        ends = {side: Endpoint(side, link=Link(), limit_bytes=1 << 20, call=call) for side in ("client", "server")}
        for message in messages:
            up = isinstance(message, OF_CLIENTS)
            sender, receiver = (ends["client"], ends["server"]) if up else (ends["server"], ends["client"])
            timed = timing if isinstance(message, (Smashed, Query)) else None
            for frame in sender.pack(message, timing=timed):
                (recorder.up if up else recorder.down)("device", frame.data)
                receiver.feed(frame.data)
    ping = probe.ping(3, 5)
    recorder.ping("device → server", ping)
    recorder.ping("device ← server", probe.answer(ping))
    return recorder


RECORDED: dict[str, Callable[[], Recorder]] = {
    "plain": plain,
    "codecs": with_codecs,
    "resume": cut_and_resumed,
    "messages": one_of_each,
}


# --- files, and what departs from them


def known(name: str) -> Recorder:
    """As committed."""
    lines = (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    config = json.loads((FOLDER / f"{name}.config.json").read_text())
    return Recorder(lines=[json.loads(line) for line in lines], config=config)


def departures(before: Recorder, now: Recorder) -> list[str]:
    """Where a recording departs from the committed one, by frame and field; the first field of each frame that does."""
    found = []
    for number, (old, new) in enumerate(zip_longest(before.lines, now.lines), start=1):
        if old is None or new is None:
            there = "more than were known" if old is None else "fewer than were known"
            return [*found, f"frame {number}: {there}: {json.dumps(new or old, ensure_ascii=False)[:200]}"]
        where = f"frame {number} ({old.get('way', 'between frames')})"
        found += [f"{where}: {text}" for text in _differences(old, new, "")][:1]
    return found + [f"configuration: {text}" for text in _differences(before.config, now.config, "", more=True)]


def _differences(old: Any, new: Any, path: str, *, more: bool = False) -> Iterator[str]:
    """`more`: what is new may have keys that were not known."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old if more else {**old, **new}:
            yield from _differences(
                old.get(key, "nothing"), new.get(key, "nothing"), f"{path}.{key}".strip("."), more=more
            )
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from _differences(one, other, f"{path}[{index}]", more=more)
    elif old != new:
        yield f"{path} was {old!r}, is {new!r}"


def write(name: str, folder: Path = FOLDER) -> None:
    """Commit to what is said now."""
    recorder = RECORDED[name]()
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in recorder.lines)
    (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    (folder / f"{name}.config.json").write_text(json.dumps(recorder.config, indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for chosen in sys.argv[1:] or RECORDED:
        write(chosen)
