"""Every number in every message, both ways: a hostile value ends one session at most, and is in nobody's averages or metrics."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from test_faults import assert_finished
from world import Client, World, make_config

from sl_client.data.loader import share
from sl_common.client.orders import check_aligned, check_begin
from sl_common.errors import ConfigError, Refused, WireError
from sl_common.messages.facts import WaveBegun
from sl_common.messages.training import Aligned, Alive, Begin, Gradient
from sl_common.partition import OwnData
from sl_common.proto import split_pb2 as pb
from sl_common.wire import WIRE_VERSION, Hello

F = FieldDescriptor
DOUBLES = (math.nan, math.inf, -math.inf, -1e9, 1e300)
WHOLE = {
    F.TYPE_UINT32: (2**32 - 1,),
    F.TYPE_UINT64: (2**63, 2**64 - 1),
    F.TYPE_FIXED64: (2**63, 2**64 - 1),
    F.TYPE_DOUBLE: DOUBLES,
}
TRUTHS = {  # numbers that say nothing about the peer's work, or of messages that a stream of a run does not carry
    "greeting": "tests/test_greeting.py",
    "refusal": "words alone",
    "hello": "below",
    "leave": "words alone",
    "bye": "words alone",
    "fetch": "no field",
    "query": "tests/test_predict_limits.py",
    "offer": "words alone",
    "lower": "weights",
    "scores": "tests/test_predict.py",
}


def numbers(descriptor: Descriptor) -> Iterator[tuple[str, object]]:
    for field in descriptor.fields:
        for value in WHOLE.get(field.type, ()):
            yield field.name, value


def cases(frame: Any) -> list[tuple[str, str, object]]:
    """(header, field, value) for every number in every header that this side sends, and in the frame itself."""
    found = [("", name, value) for name, value in numbers(frame.DESCRIPTOR)]
    for field in frame.DESCRIPTOR.fields:
        if field.message_type is not None and field.name not in TRUTHS:
            found += [(field.name, name, value) for name, value in numbers(field.message_type)]
    return found


def changed(data: bytes, frame: Any, header: str, name: str, value: object) -> bytes:
    """The frame with another number in it, if it has that header."""
    message = frame.FromString(data)
    if header == "timing" and message.HasField("smashed"):
        message.timing.SetInParent()
    if header and not message.HasField(header):
        return data
    target = getattr(message, header) if header else message
    if target.DESCRIPTOR.fields_by_name[name].is_repeated:
        getattr(target, name).append(value)
    else:
        setattr(target, name, value)
    return message.SerializeToString()


def preset_of(header: str, name: str) -> dict[str, object]:
    if name == "loss_sum":
        return {"preset": "fedavg"}
    if header == "aligned":
        return {"preset": "fsl_sage", "server__alignment": "{ epochs = 1 }"}
    return {"preset": "splitfed_v1"}


def attacked(header: str, name: str, value: object, *, up: bool) -> tuple[World, Client, BaseException | None]:
    """A run in which one client, or the server towards one client, says a hostile number wherever it can."""
    world = World(make_config(**preset_of(header, name)))
    for _ in range(3):
        world.join()
    evil = world.clients["c1"]
    frame = pb.ClientFrame if up else pb.ServerFrame
    endpoint = evil.endpoint if up else evil.session.endpoint
    pack = endpoint.pack

    def packed(said: object) -> list:
        frames = pack(said)
        return [replace(one, pieces=(changed(one.data, frame, header, name, value),)) for one in frames]

    endpoint.pack = packed
    evil.down = (
        type(evil.down)(changed(data, frame, header, name, value) for data in evil.down) if not up else evil.down
    )
    error: BaseException | None = None
    while True:
        try:
            world.run()
            return world, evil, error
        except (WireError, Refused, ConfigError) as caught:  # anything else is a traceback
            assert error is None
            error = caught
            world.lose(evil)
            if not any(isinstance(fact, WaveBegun) for fact in world.facts):
                world.join("late")  # two are too few to begin with


def assert_nobody_else_noticed(world: World) -> None:
    assert_finished(world)
    for name in ("c0", "c2"):
        assert world.clients[name].flow.ended.finished
    for fact in world.facts:
        for field, number in asdict(fact).items():
            if isinstance(number, float):
                assert math.isfinite(number), (fact, field)
                assert number >= 0, (fact, field)
            elif isinstance(number, int):
                assert number < 2**41, (fact, field)
    for state in world.coordinator.weights().values():
        assert all(torch.isfinite(t).all() for t in state.values())


@pytest.mark.parametrize(("header", "name", "value"), cases(pb.ClientFrame))
def test_a_client_says_a_hostile_number(header: str, name: str, value: object) -> None:
    world, _evil, error = attacked(header, name, value, up=True)
    assert_nobody_else_noticed(world)
    silent = header == "alive"  # this world carries none of these
    assert silent or isinstance(error, WireError | Refused) or (header, name) == ("", "seq"), "it was believed"


@pytest.mark.parametrize(("header", "name", "value"), cases(pb.ServerFrame))
def test_a_server_says_a_hostile_number(header: str, name: str, value: object) -> None:
    world, evil, error = attacked(header, name, value, up=False)
    assert_nobody_else_noticed(world)
    unused = (
        header == "late"
        or (header == "begin" and name in ("slice", "slices", "samples"))
        or (header, name) == ("", "seq")
    )
    finite = value == 1e300 and name in ("loss", "before", "after")  # shown, and nothing is made of it
    assert unused or finite or error is not None or evil.flow.ended is None, "it was believed"
    assert error is None or isinstance(error, WireError | ConfigError)


@pytest.mark.parametrize("value", [2**63, 2**64 - 1])
def test_alive_after_more_than_all_samples_is_refused(value: int) -> None:
    world = World(make_config("parallel"))
    world.join()
    with pytest.raises(WireError, match="alive after"):
        world.coordinator.handle("c0", Alive(samples=value))


@pytest.mark.parametrize(("name", "value"), list(numbers(pb.Hello.DESCRIPTOR)))
@pytest.mark.parametrize("partition", ["iid", "own"])
def test_a_hello_with_a_hostile_number_disturbs_nobody(name: str, value: int, partition: str) -> None:
    world = World(make_config("splitfed_v1", data__shards=4, data__partition=f'{{ kind = "{partition}" }}'))
    for _ in range(3):
        world.join()
    world.run(until=20)
    hello = pb.Hello(version=WIRE_VERSION, client="evil", life=bytes(15) + b"\xff")
    setattr(hello, name, value)
    try:
        opened = world.sessions.open(Hello.from_frame(pb.ClientFrame(hello=hello).SerializeToString()))
        world.sessions.lose(opened.session, "the test took it away")
    except (Refused, WireError):
        pass
    world.run()
    assert_nobody_else_noticed(world)


def test_a_shard_of_data_of_ones_own_takes_no_memory_for_the_others() -> None:
    labels = torch.arange(7).numpy()
    assert share(OwnData(), labels, 2**32 - 1, 2**32 - 2, 0).tolist() == list(range(7))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"lr": math.nan}, "a learning rate of nan"),
        ({"lr": -1e9}, "a learning rate of -1000000000.0"),
        ({"steps": 4}, "begin of 4 batches, this client has 3"),
        ({"round": 2}, "begin of round 3 of 2"),
        ({"first": 2**63}, "first = 9223372036854775808"),
        ({"slice": 3, "slices": 3}, "slice 3 of 3"),
        ({"samples": 2001}, "2001 samples, eval.samples = 2000"),
    ],
)
def test_a_begin_that_no_honest_server_says_is_refused(fields: dict[str, Any], said: str) -> None:
    world = World(make_config("parallel"))
    client = world.join()
    world.run()
    seat = client.seat
    with pytest.raises(WireError, match=said):
        check_begin(replace(Begin(round=0, rounds=2), **fields), seat.config, seat.ready, seat.bank.parts)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"loss": math.nan}, "a loss of nan"),
        ({"loss": -1.0}, "a loss of -1.0"),
        ({"correct": 1}, "1 correct answers, at most 0"),
        ({"dz": None}, "without a gradient"),
        ({"dz": torch.zeros(1, 2)}, r"gradient is torch.float32 \(1, 2\)"),
        ({"dz": torch.full((32, 16), math.nan)}, "NaN or Inf"),
    ],
)
def test_a_reply_that_no_honest_server_says_is_refused(fields: dict[str, Any], said: str) -> None:
    world = World(make_config("parallel"))
    for _ in range(3):
        world.join()
    flow = world.clients["c1"].flow
    while not flow._under_way:
        world.run(until=1)
    with pytest.raises(WireError, match=said):
        flow.deliver(replace(Gradient(step=0, loss=1.0, dz=torch.zeros(32, 16)), **fields))


def test_an_alignment_with_errors_that_cannot_be_is_refused() -> None:
    with pytest.raises(WireError, match=r"now is round 2, wave 1"):
        check_aligned(Aligned(round=0, wave=0, weights={}, before=1.0, after=1.0), (1, 0))
    for before, after in ((math.nan, 1.0), (1.0, math.inf), (-1.0, 1.0)):
        with pytest.raises(WireError, match="squared error"):
            check_aligned(Aligned(round=0, wave=0, weights={}, before=before, after=after), (0, 0))
