"""Work and memory before a bound: whatever a stranger says, it is refused after a bounded look at it. Work is counted, not timed."""

from __future__ import annotations

import tracemalloc
from typing import Any, Literal

import pytest

from sl_common.codec import Link
from sl_common.errors import Refused, WireError
from sl_common.proto import split_pb2 as pb
from sl_common.wire import Endpoint, Refusal, probe, read_answer
from sl_common.wire.bounds import MAX_OTHERS, MAX_SENTENCE
from sl_common.wire.fields import MAX_HEADER, check_entries, read_varint, split_frame, varint

Side = Literal["client", "server"]
SIDES: list[tuple[Side, str]] = [(side, call) for side in ("client", "server") for call in ("train", "infer")]  # type: ignore[misc]
MESSAGE = 8 << 20  # bytes that gRPC lets through


class Counted(bytes):
    """Bytes that count how often one of them, or a stretch, is looked at."""

    looks = 0

    def __getitem__(self, at: Any) -> Any:
        self.looks += 1
        return super().__getitem__(at)


def end(side: Side, call: Any = "train", **bounds: int) -> Endpoint:
    return Endpoint(side, link=Link(), **{"limit_bytes": 1 << 20, **bounds}, call=call)


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


# --- frames

ENDLESS = {
    "a number that goes on": b"\x08" + b"\xff" * MESSAGE,
    "a number of zeros that goes on": b"\x08" + b"\x80" * MESSAGE,
    "the length of a header that goes on": b"\x32" + b"\xff" * MESSAGE,
    "the length of a chunk that goes on": b"\x7a" + b"\xff" * MESSAGE,
    "one number again and again": b"\x08\x01" * (MESSAGE // 2),
    "one empty header again and again": b"\x32\x00" * (MAX_HEADER // 2),
    "a number that goes on in a field that nobody knows": b"\x72" + b"\xff" * (MAX_HEADER - 1),
    "headers that take turns": b"\x32\x00\x42\x00" * (MAX_HEADER // 4),
    "groups in groups": b"\x0b" * MAX_HEADER,
    "a number of eleven bytes": b"\x08" + b"\x80" * 10 + b"\x01",
    "a number of 65 bits": b"\x08" + b"\xff" * 9 + b"\x02",
}


@pytest.mark.parametrize(("side", "call"), SIDES)
@pytest.mark.parametrize("case", ENDLESS)
def test_a_frame_is_refused_after_a_few_looks_at_it(case: str, side: Side, call: str) -> None:
    """A megabyte of 0xff behind one tag took a minute of the engine's thread: its number grew with every byte."""
    data = Counted(ENDLESS[case])
    with pytest.raises(WireError):
        end(side, call).feed(data)
    assert data.looks < 200


@pytest.mark.parametrize("side", ["client", "server"])
@pytest.mark.parametrize("entry", [b"", b"\x1a\x00", b"\xa0\x06\x00", b"\x1a\x03\xa0\x06\x00"], ids=bytes.hex)
def test_a_header_of_too_many_entries_is_refused_before_it_is_parsed(side: Side, entry: bytes) -> None:
    """Half a million empty weights in a megabyte are 35 MiB of messages, and 0.2 s to parse."""
    number, weights = (
        (6, 9) if side == "client" else (5, 6)
    )  # Begin.weights, Smashed has none: a list of unknown fields
    one = field(weights, entry)
    data = Counted(field(number, one * ((MAX_HEADER - 16) // len(one))))
    most = 100 + MAX_OTHERS
    with pytest.raises(WireError, match=f"more than {most} entries"):
        end(side, limit_tensors=100).feed(data)
    assert data.looks < 6 * most


def test_headers_said_twice_count_together() -> None:
    twice = field(6, field(9, b"") * 4000) * 2
    with pytest.raises(WireError, match="more than 5000 entries"):
        check_entries(twice, 5000)
    check_entries(twice, 8000)


@pytest.mark.parametrize("side", ["client", "server"])
def test_a_message_has_no_more_tensors_than_the_run(side: Side) -> None:
    weights = [pb.NamedTensor(part="lower", name=str(n), tensor=pb.Tensor(codec="identity", dtype=1)) for n in range(5)]
    for one in weights:
        one.tensor.shape.append(0)
    frame = pb.ServerFrame if side == "client" else pb.ClientFrame
    name, header = ("begin", pb.Begin) if side == "client" else ("done", pb.Done)
    data = frame(seq=1, **{name: header(weights=weights, parts=["lower"])}).SerializeToString()
    assert end(side, limit_tensors=5).feed(data).message is not None
    with pytest.raises(WireError, match=f"{name}.weights has 5 entries, at most 4 are allowed"):
        end(side, limit_tensors=4).feed(data)


def test_the_largest_honest_header_is_taken() -> None:
    """16,384 tensors under names as models have them."""
    slot = pb.Tensor(codec="identity", dtype=1, shape=[0, 9])
    weights = [pb.NamedTensor(part="lower", name=f"stage.{n}.conv.weight", tensor=slot) for n in range(16384)]
    data = pb.ClientFrame(seq=1, done=pb.Done(weights=weights, parts=["lower"])).SerializeToString()
    assert end("server").feed(data).message is not None


def test_what_is_remembered_of_a_message_is_short() -> None:
    """Fields that nobody knows travel in a tensor's header, and were kept with it: 64 of them for a session, a megabyte each."""
    server = end("server")
    tracemalloc.start()
    try:
        for number in range(1, 20):
            unknown = field(100, number.to_bytes(4, "little") * (1 << 17))
            y = pb.Tensor(codec="identity", dtype=5, shape=[1], nbytes=8)
            z = pb.Tensor.FromString(
                pb.Tensor(codec="identity", dtype=1, shape=[1], nbytes=4).SerializeToString() + unknown
            )
            with pytest.raises(WireError, match=r"a tensor header of 5243.. bytes, at most 512"):
                server.feed(pb.ClientFrame(seq=1, smashed=pb.Smashed(y=y, z=z), chunk=bytes(12)).SerializeToString())
        del unknown, z
        assert tracemalloc.get_traced_memory()[0] < 2_000_000
    finally:
        tracemalloc.stop()


def test_a_varint_is_read_as_protobuf_writes_it() -> None:
    for number in (0, 1, 127, 128, 300, 2**32, 2**63, 2**64 - 1):
        assert read_varint(varint(number) + b"rest", 0) == (number, len(varint(number)))
        frame = pb.ClientFrame(seq=number, chunk=b"abc").SerializeToString()
        head, chunk = split_frame(frame)
        assert (head, bytes(chunk)) == (frame[:-5], b"abc")


# --- what opens a stream, and the probe


@pytest.mark.parametrize(
    "frame", [pb.ServerFrame(chunk=bytes(20_000)), pb.ServerFrame(refusal=pb.Refusal(reason="x" * 20_000))]
)
def test_an_answer_to_hello_is_small(frame: pb.ServerFrame) -> None:
    with pytest.raises(WireError, match=r"an answer to hello of 200.. bytes, at most 16384"):
        read_answer(frame.SerializeToString())


@pytest.mark.parametrize("name", ["n" * 65, "\x1b[2J", "a/b"])
def test_a_server_gives_a_client_a_name_and_nothing_else(name: str) -> None:
    with pytest.raises(WireError, match=r"greeting\.client must be at most 64 printable"):
        read_answer(pb.ServerFrame(greeting=pb.Greeting(client=name)).SerializeToString())
    with pytest.raises(WireError, match="welcome names the client"):
        end("client").feed(pb.ServerFrame(seq=1, welcome=pb.Welcome(client=name)).SerializeToString())


def test_the_sentence_of_a_refusal_is_cut_on_both_sides() -> None:
    answer = read_answer(Refusal(code="full", reason="ä€😀" * 100_000).to_frame())
    assert answer == Refusal(code="full", reason=("ä€😀" * 1000)[:MAX_SENTENCE])
    with pytest.raises(Refused) as refused:
        end("client").feed(pb.ServerFrame(refusal=pb.Refusal(code="x" * 999, reason="y" * 99_999)).SerializeToString())
    assert (len(refused.value.code), len(refused.value.reason)) == (64, MAX_SENTENCE)
    received = end("server").feed(pb.ClientFrame(seq=1, leave=pb.Leave(reason="y" * 99_999)).SerializeToString())
    assert len(received.message.reason) == MAX_SENTENCE  # type: ignore[union-attr]


def test_a_ping_is_small_on_both_sides() -> None:
    for read, error in ((probe.answer, ValueError), (probe.read_pong, WireError)):
        with pytest.raises(error, match="bytes, at most 1049600"):
            read(field(9, bytes(4 << 20)))
        with pytest.raises(error, match=r"no (answer to a )?ping"):
            read(b"\xff")
    assert len(probe.read_pong(pb.Ping(software="x" * 9999).SerializeToString()).software) == 64
