"""How a stream opens: Hello and its answers survive the wire, and nothing else passes for one."""

from __future__ import annotations

import pytest
from drawn import LAW, u32, u64
from hypothesis import given, settings
from hypothesis import strategies as st

from sl_common.errors import WireError
from sl_common.proto import split_pb2 as pb
from sl_common.wire import Greeting, Hello, Refusal, read_answer
from sl_common.wire.greeting import MAX_NAME

names = st.text(max_size=MAX_NAME).filter(lambda name: name.isprintable() and "/" not in name)
hellos = st.builds(
    Hello,
    life=st.binary(min_size=16, max_size=16),
    client=names,
    received=u64,
    resume=st.booleans(),
    shard=st.none() | st.integers(0, 2**32 - 2),
    shards=st.none() | st.integers(1, 2**32 - 1),
    version=u32,
    software=st.text(max_size=MAX_NAME),
)
greetings = st.builds(
    Greeting,
    client=names,
    received=u64,
    resumed=st.booleans(),
    incarnation=u64,
    version=u32,
    software=st.text(max_size=MAX_NAME),
)
refusals = st.builds(Refusal, code=st.text(max_size=MAX_NAME), reason=st.text())
MANY = settings(LAW, max_examples=200)


@LAW
@given(hellos)
def test_a_hello_arrives(hello: Hello) -> None:
    assert Hello.from_frame(hello.to_frame()) == hello


@LAW
@given(greetings | refusals)
def test_an_answer_arrives(answer: Greeting | Refusal) -> None:
    assert read_answer(answer.to_frame()) == answer


def test_shard_zero_is_not_any_shard() -> None:
    assert Hello.from_frame(Hello(life=bytes(16), shard=0).to_frame()).shard == 0
    assert Hello.from_frame(Hello(life=bytes(16)).to_frame()).shard is None


def test_a_long_software_version_is_cut() -> None:
    assert Hello.from_frame(Hello(life=bytes(16), software="v" * 1000).to_frame()).software == "v" * MAX_NAME


@pytest.mark.parametrize(
    ("hello", "match"),
    [
        (Hello(life=b""), "life has 0 bytes, must have 16"),
        (Hello(life=bytes(17)), "life has 17 bytes, must have 16"),
        (Hello(life=bytes(16), client="n" * 65), "at most 64 printable characters"),
        (Hello(life=bytes(16), client="../evil"), "without '/', got '../evil'"),
        (Hello(life=bytes(16), client="two\nlines"), r"got 'two\\nlines'"),
        (Hello(life=bytes(16), client="\x1b[2J"), "printable"),
    ],
)
def test_a_bad_hello_is_refused_with_what_it_said(hello: Hello, match: str) -> None:
    with pytest.raises(WireError, match=match):
        Hello.from_frame(hello.to_frame())


@pytest.mark.parametrize(
    ("frame", "match"),
    [
        (pb.ClientFrame(), "opens with hello, not with 'nothing'"),
        (pb.ClientFrame(seq=1, ready=pb.Ready()), "not with 'ready'"),
        (pb.ClientFrame(seq=1, hello=pb.Hello(life=bytes(16))), "opens with hello"),
        (pb.ClientFrame(hello=pb.Hello(life=bytes(16)), chunk=b"x"), "opens with hello"),
    ],
)
def test_a_stream_opens_with_nothing_but_hello(frame: pb.ClientFrame, match: str) -> None:
    with pytest.raises(WireError, match=match):
        Hello.from_frame(frame.SerializeToString())


@pytest.mark.parametrize(("frame", "said"), [(pb.ServerFrame(), "nothing"), (pb.ServerFrame(bye=pb.Bye()), "bye")])
def test_a_server_answers_with_greeting_or_refusal(frame: pb.ServerFrame, said: str) -> None:
    with pytest.raises(WireError, match=f"answered hello with '{said}'"):
        read_answer(frame.SerializeToString())


@pytest.mark.parametrize("read", [Hello.from_frame, read_answer])
def test_what_is_not_protobuf_is_the_peers_fault(read: object) -> None:
    with pytest.raises(WireError, match="first frame is not a protobuf"):
        read(b"\xff")


@MANY
@given(st.binary(max_size=80), hellos | greetings | refusals, st.integers(0, 200), st.integers(0, 8))
def test_random_and_mutated_bytes_do_no_harm(
    noise: bytes, opening: Hello | Greeting | Refusal, at: int, length: int
) -> None:
    frame = opening.to_frame()
    for data in (noise, frame[:at] + noise + frame[at + length :]):
        for read in (Hello.from_frame, read_answer):
            try:
                read(data)
            except WireError:
                continue
