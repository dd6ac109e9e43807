"""Whatever a peer sends, it is the peer who is wrong: WireError or Refused, no memory taken, nobody else disturbed."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import pytest
from drawn import LAW, PEER, Side, endpoint, said_by
from hypothesis import given, settings
from hypothesis import strategies as st

from sl_common.errors import Refused, WireError
from sl_common.proto import split_pb2 as pb
from sl_common.wire.frame import MAX_CHUNK

TERABYTE = 1 << 40
LIMIT = 1 << 20
FRAME = {"client": pb.ClientFrame, "server": pb.ServerFrame}  # by who sends it
U64 = 2**64 - 1


def tensor(*shape: int, dtype: int = 1, nbytes: int | None = None, codec: str = "identity", params: bytes = b"") -> Any:
    """A tensor header; float32 and honest unless said otherwise."""
    nbytes = 4 * math.prod(shape) if nbytes is None else nbytes
    slot = pb.Tensor(codec=codec, shape=shape, nbytes=nbytes, params=params)
    slot.dtype = dtype  # an open enum: any number
    return slot


def smashed(z: Any = None, y: Any = None) -> dict[str, Any]:
    """16 bytes of labels, then z: 24 bytes unless said otherwise."""
    return {"smashed": pb.Smashed(train=True, y=y or tensor(2, dtype=5, nbytes=16), z=z or tensor(2, 3))}


def done(*slots: Any) -> dict[str, Any]:
    named = [pb.NamedTensor(part="lower", name=str(n), tensor=slot) for n, slot in enumerate(slots)]
    return {"done": pb.Done(weights=named, parts=["lower"])}


def feed(sender: Side, *frames: dict[str, Any]) -> None:
    """Numbered from 1, to an end that has heard and said nothing."""
    receiver = endpoint(PEER[sender], limit_bytes=LIMIT)
    for seq, fields in enumerate(frames, start=1):
        receiver.feed(FRAME[sender](**{"seq": seq, **fields}).SerializeToString())


def named_twice() -> dict[str, Any]:
    named = [pb.NamedTensor(part="lower", name="w", tensor=tensor(1)) for _ in range(2)]
    return {"done": pb.Done(weights=named, parts=["lower"]), "chunk": bytes(8)}


def holds(**what: Any) -> dict[str, Any]:
    return {"ready": pb.Ready(samples=1, batches=1, **what)}


def build(**changed: Any) -> pb.Build:
    return pb.Build(**({"part": "lower", "layout_sha256": bytes(32), "modules_sha256": bytes(32)} | changed))


def inputs(**changed: Any) -> pb.Inputs:
    return pb.Inputs(**({"dtype": "uint8", "low": 0.0, "high": 255.0} | changed))


def held(**changed: Any) -> pb.DataSet:
    digests = {"train_sha256": bytes(32), "test_sha256": bytes(32)}
    return pb.DataSet(**({"train": 1, "test": 1, "inputs": inputs(), **digests} | changed))


READY = {"ready": pb.Ready(samples=1, batches=1)}
BAD: dict[str, tuple[list[dict[str, Any]], str]] = {
    "header in the middle of a body": ([smashed(), READY], "ready begins while 40 bytes of smashed are missing"),
    "body too long": ([smashed() | {"chunk": bytes(41)}], "1 bytes too many"),
    "body too long later": ([smashed() | {"chunk": bytes(30)}, {"chunk": bytes(11)}], "1 bytes too many"),
    "body where there is none": ([READY | {"chunk": b"x"}], "1 bytes too many"),
    "chunk without a header": ([{"chunk": b"x"}], "frame 1 has neither a header nor a message"),
    "chunk after the end": ([smashed() | {"chunk": bytes(40)}, {"chunk": b"x"}], "frame 2 has neither"),
    "nothing at all": ([{}], "frame 1 has neither"),
    "empty continuation": ([smashed(), {}], "frame 2 is empty"),
    "chunk too large": ([smashed() | {"chunk": bytes(MAX_CHUNK + 1)}], f"{MAX_CHUNK + 1} bytes, at most {MAX_CHUNK}"),
    "too few bytes for the shape": ([smashed(tensor(2, 3, nbytes=23))], r"takes 24 bytes, header says 23"),
    "too many bytes for the shape": ([smashed(tensor(2, 3, nbytes=25))], r"takes 24 bytes, header says 25"),
    "huge nbytes": ([smashed(tensor(2, 3, nbytes=U64))], f"takes 24 bytes, header says {U64}"),
    "no tensor": ([{"smashed": pb.Smashed(y=tensor(2, dtype=5, nbytes=16))}], "dtype number 0, known are 1 to 18"),
    "unspecified dtype": ([smashed(tensor(2, dtype=0))], "dtype number 0"),
    "unknown dtype": ([smashed(tensor(2, dtype=19))], "dtype number 19"),
    "negative dtype": ([smashed(tensor(2, dtype=-1))], "dtype number -1"),
    "rank 17": ([smashed(tensor(*[1] * 17))], "has shape"),
    "huge side": ([smashed(tensor(TERABYTE, nbytes=4))], f"has shape .{TERABYTE},"),
    "negative side": ([smashed(tensor(U64, nbytes=4))], f"has shape .{U64},"),
    "huge sides beside an empty one": ([smashed(tensor(0, TERABYTE - 1, TERABYTE - 1, nbytes=0))], "shape|bytes"),
    "huge sides before an empty one": ([done(tensor(TERABYTE - 1, TERABYTE - 1, 0, nbytes=0))], "shape|bytes"),
    "other codec up": ([smashed(tensor(2, codec="topk"))], "peer used codec 'topk' for up, this run says 'identity'"),
    "other codec for labels": ([smashed(y=tensor(2, dtype=5, nbytes=16, codec=""))], "peer used codec '' for up"),
    "other codec for weights": ([done(tensor(2, codec="x" * 9))], "peer used codec 'xxxxxxxxx' for state"),
    "too many parameters": ([smashed(tensor(2, params=bytes(65)))], "65 bytes of parameters"),
    "parameters that the codec has not": ([smashed(tensor(2, params=b"x"))], "identity has no parameters"),
    "weights named twice": ([named_twice()], "weights name lower/w twice"),
    "hello in the middle": ([READY, {"hello": pb.Hello(version=1, life=bytes(16))}], "hello in the middle"),
    "acknowledges what was not sent": ([READY | {"ack": 1}], "acknowledges frame 1, we sent 0"),
    "acknowledges too much": ([{"seq": 0, "ack": U64}], f"acknowledges frame {U64}, we sent 0"),
    "a long codec's name": ([smashed(tensor(2, codec="x" * 65))], "names a codec with 65 characters"),
    "a huge header": ([{"leave": pb.Leave(reason="x" * (1 << 20))}], "a header of 10485.. bytes, at most 1048576"),
    "too many tensors": ([done(*[tensor(1)] * 16385)], "done.weights has 16385 entries, at most 16384"),
    "too many snapshots": (
        [{"ready": pb.Ready(samples=1, batches=1, snapshots=[1] * 1025)}],
        "ready.snapshots has 1025",
    ),
    "too many builds": ([holds(builds=[build()] * 17)], "ready.builds has 17 entries, at most 16"),
    "a long layout": ([holds(builds=[build(layout="x" * 8193)])], "build.layout has 8193 characters, at most 8192"),
    "long modules": ([holds(builds=[build(modules="x" * 8193)])], "build.modules has 8193 characters"),
    "a build's digest": ([holds(builds=[build(layout_sha256=b"")])], "build.layout_sha256 has 0 bytes, must have 32"),
    "a long probe": ([holds(builds=[build(probe=[0.0] * 65)])], "build.probe has 65 numbers, at most 64"),
    "a long version": ([holds(torch="2" * 65)], "ready.torch has 65 characters, at most 64"),
    "no samples": ([holds(data=held(train=0))], "a data set of 0 and 1 samples"),
    "too many samples": ([holds(data=held(test=U64))], f"a data set of 1 and {U64} samples"),
    "a set's digest": ([holds(data=held(test_sha256=bytes(31)))], "data.test_sha256 has 31 bytes"),
    "too many means": ([holds(data=held(means=[0.0] * 129))], "data.means has 129 numbers, at most 128"),
    "means that are none": ([holds(data=held(means=[math.nan]))], "data.means has nan, every number must be finite"),
    "no inputs": (
        [holds(data=pb.DataSet(train=1, test=1, train_sha256=bytes(32), test_sha256=bytes(32)))],
        "of type ''",
    ),
    "inputs without an end": ([holds(data=held(inputs=inputs(high=math.inf)))], "both must be finite, in this order"),
    "inputs of no word": ([holds(data=held(inputs=inputs(dtype="x\n")))], "must be a word of at most 16 characters"),
    "a long mean": ([holds(data=held(inputs=inputs(mean=[0.0] * 1025)))], "inputs.mean has 1025 numbers, at most 1024"),
    "a std of nothing": ([holds(data=held(inputs=inputs(std=[0.0])))], "inputs.std has 0.0, every one must be > 0"),
    "too many digests": ([{"done": pb.Done(digests=[pb.Digest()] * 1025)}], "done.digests has 1025 entries"),
    "gap": ([READY, READY | {"seq": 3}], "frame 3 follows frame 1"),
}
TOO_LARGE: dict[str, list[dict[str, Any]]] = {
    "one tensor": [smashed(tensor(TERABYTE // 8))],
    "one byte over the limit": [done(tensor(LIMIT + 1, dtype=9, nbytes=LIMIT + 1))],
    "many tensors": [done(*[tensor(LIMIT // 4)] * 1000)],
    "a batch and its labels": [smashed(tensor(LIMIT // 4), tensor(1, dtype=5, nbytes=8))],
    "a lie about the bytes": [done(tensor(1, nbytes=TERABYTE))],
    "one that decodes to more": [done(tensor(1 << 39, 1 << 39, nbytes=4))],
}


@pytest.mark.parametrize("case", BAD)
def test_a_malformed_frame_is_the_peers_fault(case: str) -> None:
    frames, match = BAD[case]
    with pytest.raises(WireError, match=match):
        feed("client", *frames)


@pytest.mark.parametrize("case", TOO_LARGE)
def test_what_is_too_large_is_refused_before_any_memory_is_taken(case: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(WireError, match=r"this run allows|takes 4 bytes, header says|has shape"):
            feed("client", *TOO_LARGE[case])
        assert tracemalloc.get_traced_memory()[1] < LIMIT // 2
    finally:
        tracemalloc.stop()


def test_thinking_up_codecs_fills_no_memory() -> None:
    """Headers are remembered, since a run has few; what a peer wrote there was kept, whatever its length, after its refusal."""
    tracemalloc.start()
    try:
        for number in range(40):
            with pytest.raises(WireError):
                feed("client", smashed(tensor(2, codec=f"{number:0>500000}")))
        assert tracemalloc.get_traced_memory()[0] < 2_000_000
    finally:
        tracemalloc.stop()


def test_a_body_of_exactly_the_limit_is_taken() -> None:
    feed("client", done(tensor(LIMIT // 8), tensor(LIMIT // 8)) | {"chunk": bytes(LIMIT)})


@pytest.mark.parametrize("chunk", [0, 10])
def test_the_server_may_break_rules_too(chunk: int) -> None:
    gradient = {"gradient": pb.Gradient(dz=tensor(2, 3)), "chunk": bytes(chunk)}
    with pytest.raises(WireError, match=f"bye begins while {24 - chunk} bytes of gradient"):
        feed("server", gradient, {"bye": pb.Bye()})
    with pytest.raises(WireError, match="codec 'x' for down"):
        feed("server", {"gradient": pb.Gradient(dz=tensor(2, codec="x"))})
    with pytest.raises(WireError, match="greeting in the middle of a stream"):
        feed("server", {"bye": pb.Bye()}, {"greeting": pb.Greeting()})


@pytest.mark.parametrize("seq", [0, 1, 7])
def test_a_refusal_ends_the_stream_wherever_it_comes(seq: int) -> None:
    with pytest.raises(Refused, match="no more places") as refused:
        feed("server", {"seq": seq, "refusal": pb.Refusal(code="full", reason="no more places")})
    assert (refused.value.code, refused.value.reason) == ("full", "no more places")


@pytest.mark.parametrize("receiver", ["client", "server"])
@pytest.mark.parametrize("data", [b"\xff", b"\x0b", b"\x7a\x05abc", b"\x1a\x02\x1a\xff"], ids=bytes.hex)
def test_what_is_not_protobuf_is_refused(receiver: Side, data: bytes) -> None:
    with pytest.raises(WireError, match=f"frame of {len(data)} bytes is not protobuf"):
        endpoint(receiver).feed(data)


# --- anything at all

side = st.sampled_from(["client", "server"])
FUZZ = settings(LAW, max_examples=300)


def feed_anything(receiver: Side, frames: list[bytes]) -> None:
    """Nothing but WireError and Refused may come out."""
    end = endpoint(receiver, limit_bytes=1 << 16)
    try:
        for data in frames:
            end.feed(data)
    except (WireError, Refused):
        return


@FUZZ
@given(side, st.lists(st.binary(max_size=60), min_size=1, max_size=3))
def test_random_bytes_do_no_harm(receiver: Side, tails: list[bytes]) -> None:
    feed_anything(receiver, tails)
    feed_anything(receiver, [bytes([0x08, seq]) + tail for seq, tail in enumerate(tails, start=1)])


@st.composite
def mutated(draw: st.DrawFn, sender: Side) -> list[bytes]:
    """A valid conversation, some bytes of which are changed, lost or said twice."""
    talk = draw(st.lists(said_by[sender], min_size=1, max_size=2))
    end = endpoint(sender, chunk_bytes=draw(st.sampled_from([16, 1 << 20])))
    frames = [bytearray(frame.data) for message in talk for frame in end.pack(message)]
    for _ in range(draw(st.integers(1, 4))):
        frame = frames[draw(st.integers(0, len(frames) - 1))]
        at = draw(st.integers(0, len(frame)))
        until = at + draw(st.integers(0, 3))
        frame[at:until] = draw(st.binary(max_size=3)) if draw(st.booleans()) else frame[at:until] * 2
    return [bytes(frame) for frame in frames]


@FUZZ
@given(st.data(), side)
def test_mutated_frames_do_no_harm(data: st.DataObject, sender: Side) -> None:
    feed_anything(PEER[sender], data.draw(mutated(sender)))


SIZES = st.sampled_from([0, 1, 2, 3, 2**31, TERABYTE - 1])
BROKEN: list[dict[str, Any]] = [
    {},
    {"nbytes": U64},
    {"nbytes": 1},
    {"dtype": -1},
    {"dtype": 19},
    {"codec": "topk"},
    {"params": b"x"},
]


@st.composite
def hostile_tensors(draw: st.DrawFn) -> Any:
    """A header as somebody writes it who has read our checks: it contradicts itself in one place at most."""
    shape = draw(st.lists(SIZES, max_size=4) | st.lists(st.integers(0, U64), max_size=3))
    nbytes = min(4 * math.prod(shape), U64)
    return tensor(*shape, **{"nbytes": nbytes, **draw(st.sampled_from(BROKEN))})


@FUZZ
@given(hostile_tensors(), hostile_tensors(), st.sampled_from(["smashed", "done", "gradient"]), st.integers(-1, 1))
def test_hostile_headers_do_no_harm(one: Any, other: Any, name: str, more: int) -> None:
    """With a body that is as long as they say, if that is little; or one byte off."""
    sender: Side = "server" if name == "gradient" else "client"
    said = one.nbytes if name == "gradient" else one.nbytes + other.nbytes
    header = {"smashed": pb.Smashed(z=one, y=other), "gradient": pb.Gradient(dz=one), "done": done(one, other)["done"]}
    body = bytes(max(0, min(said, 64) + more))
    feed_anything(PEER[sender], [FRAME[sender](**{"seq": 1, name: header[name], "chunk": body}).SerializeToString()])
