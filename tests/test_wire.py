"""Laws of the endpoint on a stream that does not break: every message survives, in the frames and bytes that are documented."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from drawn import DRAWN, LAW, bytes_of, content, endpoint, ends_for, messages, normal, random_tensor
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from unions import members

from sl_common.codec import Packed
from sl_common.codec.packed import DTYPES
from sl_common.messages.inference import Lower, Query, Scores
from sl_common.messages.training import Aligned, Begin, Bye, Directive, Done, Gradient, Message, Smashed
from sl_common.proto import split_pb2 as pb
from sl_common.wire import CHUNK_BYTES, Endpoint, Frame, Received, Timing
from sl_common.wire.accounting import GRPC_PREFIX, kind_of
from sl_common.wire.frame import MAX_CHUNK


def carry(sender: Endpoint, receiver: Endpoint, message: Message) -> tuple[list[Frame], list[Received]]:
    """Every frame goes over; the message is whole with the last one and not before."""
    frames = sender.pack(message)
    received = [receiver.feed(frame.data) for frame in frames]
    assert [one.message is not None for one in received] == [False] * (len(frames) - 1) + [True]
    return frames, received


def through(message: Message, **options: int) -> Message:
    heard = carry(*ends_for(message, **options), message)[1][-1].message
    assert heard is not None
    return heard


def batch(size: int, *cut: int, train: bool = True, needs_grad: bool = True) -> Smashed:
    z = random_tensor(torch.float32, (size, *cut), seed=1)
    return Smashed(step=3, z=z, y=torch.arange(size), train=train, needs_grad=needs_grad)


def body_nbytes(message: Message) -> int:
    match message:
        case Smashed(z=z, y=y):
            tensors = [z, y]
        case Gradient(dz=dz):
            tensors = [] if dz is None else [dz]
        case Query(z=tensor) | Scores(scores=tensor):
            tensors = [tensor]
        case Begin(weights=weights) | Done(weights=weights) | Aligned(weights=weights) | Lower(weights=weights):
            tensors = [t for state in weights.values() for t in state.values()]
        case _:
            tensors = []
    return sum(len(bytes_of(t)) for t in tensors)


# --- the message


@pytest.mark.parametrize("kind", members(Message), ids=lambda kind: kind.__name__)
@LAW
@given(data=st.data())
def test_every_message_arrives_as_it_was_said(kind: type, data: st.DataObject) -> None:
    message = data.draw(DRAWN[kind])
    assert content(through(message)) == content(message)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2), (2, 3, 4, 5), (1,) * 16], ids=str)
def test_every_dtype_and_shape_arrives(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    message = Gradient(step=1, loss=0.5, dz=random_tensor(dtype, shape, seed=2))
    assert content(through(message)) == content(message)


def test_defaults_and_empty_fields_arrive() -> None:
    for message in (
        Done(round=0, wave=0, steps=0, samples=0),
        Begin(round=0, rounds=0),
        Begin(round=0, rounds=0, directive=Directive(send=False, update=False)),
        Gradient(step=0, loss=0.0),
        Smashed(step=0, z=torch.empty(0, 4), y=torch.empty(0, dtype=torch.int64)),
    ):
        assert content(through(message)) == content(message)


def test_a_part_without_weights_arrives() -> None:
    """A lower segment may consist of blocks that have no state; `Done.weights` must still name it."""
    message = Done(round=0, wave=0, steps=1, samples=1, weights={"lower": {}})
    assert content(through(message)) == content(message)


@LAW
@given(messages, st.integers(1, 64) | st.integers(1, MAX_CHUNK))
def test_any_chunk_size_gives_the_same_message(message: Message, chunk_bytes: int) -> None:
    assert content(through(message, chunk_bytes=chunk_bytes)) == content(message)


@pytest.mark.parametrize("chunk_bytes", [4097, CHUNK_BYTES, MAX_CHUNK])
def test_a_message_larger_than_any_chunk_arrives(chunk_bytes: int) -> None:
    message = batch(1000, 1500)
    assert body_nbytes(message) > MAX_CHUNK
    assert content(through(message, chunk_bytes=chunk_bytes)) == content(message)


@pytest.mark.parametrize("chunk_bytes", [1, 7, CHUNK_BYTES])
def test_every_tensor_of_a_message_starts_at_a_multiple_of_64(chunk_bytes: int) -> None:
    state = {f"{dtype}{n}": random_tensor(dtype, (n,), seed=n) for dtype in DTYPES for n in (0, 1, 3, 17)}
    heard = through(
        Done(round=0, wave=0, steps=1, samples=1, weights={"a": state, "b": state}), chunk_bytes=chunk_bytes
    )
    assert isinstance(heard, Done)
    pointers = [tensor.data_ptr() for part in heard.weights.values() for tensor in part.values()]
    assert len(pointers) == 2 * len(state)
    assert all(pointer % 64 == 0 for pointer in pointers)


def test_a_received_message_does_not_change_when_the_next_one_comes() -> None:
    first, second = batch(4, 8), batch(4, 8, train=False)
    sender, receiver = ends_for(first)
    heard = [carry(sender, receiver, message)[1][-1].message for message in (first, second)]
    assert [content(m) for m in heard] == [content(first), content(second)]


class Graph:
    """Autograd alone holds the tensor."""

    def __init__(self, z: Tensor) -> None:
        self._weight = torch.ones(8, requires_grad=True)
        self._sum = (z * self._weight).sum()

    def gradient(self) -> Any:
        return content(*torch.autograd.grad(self._sum, self._weight, retain_graph=True))


KEEPS: dict[str, Callable[[Smashed], Any]] = {
    "nothing": lambda _: torch.empty(0),
    "the message": lambda heard: heard,
    "a tensor": lambda heard: heard.z,
    "labels": lambda heard: heard.y,
    "a part of a tensor": lambda heard: heard.z[1:, :2],
    "an array": lambda heard: torch.from_numpy(heard.z.numpy()[:, 1:]),
    "what came": lambda heard: heard.packed,
    "a graph that needs it": lambda heard: Graph(heard.z),
}


def seen(kept: Any) -> Any:
    match kept:
        case Packed():
            return bytes(kept.data)
        case Graph():
            return kept.gradient()
        case _:
            return content(kept)


@LAW
@given(st.lists(st.tuples(st.sampled_from(sorted(KEEPS)), st.integers(1, 3)), min_size=2, max_size=12))
def test_what_anybody_keeps_of_a_message_does_not_change(happens: list[tuple[str, int]]) -> None:
    """Its memory serves again, but only if nobody has any of it."""
    sender, receiver = endpoint("client"), endpoint("server")
    kept: list[tuple[str, Any, Any]] = []
    for number, (what, size) in enumerate(happens):
        sent = Smashed(step=number, z=normal((size, 8), number), y=torch.arange(size) + number)
        heard = carry(sender, receiver, sent)[1][-1].message
        assert isinstance(heard, Smashed)
        mine = KEEPS[what](heard)
        kept.append((what, mine, seen(mine)))
        del heard, mine
        for name, one, before in kept:
            assert seen(one) == before, name


def test_memory_of_a_message_that_nobody_has_serves_again() -> None:
    sender, receiver = endpoint("client"), endpoint("server")
    pointers = set()
    for number in range(5):
        heard = carry(sender, receiver, Smashed(step=number, z=normal((64, 500), number), y=torch.arange(64)))[1][
            -1
        ].message
        assert isinstance(heard, Smashed)
        pointers.add(heard.z.data_ptr())
        del heard
    assert len(pointers) == 1


def test_memory_of_large_bodies_is_not_kept() -> None:
    """A server would have that of all clients at once."""
    sender, receiver = endpoint("client"), endpoint("server")
    carry(sender, receiver, Smashed(step=0, z=normal((64, 2000), 0), y=torch.arange(64)))
    assert receiver._incoming._last is None


def test_a_batch_is_also_there_as_it_came() -> None:
    message = batch(4, 8)
    heard = through(message)
    assert isinstance(heard, Smashed)
    assert message.packed is None
    assert heard.packed is not None
    assert bytes(heard.packed.data) == bytes_of(message.z)
    assert (heard.packed.layout.dtype, heard.packed.layout.shape) == (message.z.dtype, tuple(message.z.shape))


UNSETTLED: dict[str, Callable[[Tensor], Message]] = {
    "weights": lambda x: Done(round=0, wave=0, steps=1, samples=1, weights={"lower": {"weight": x}}),
    "an activation without a backward pass": lambda z: Smashed(step=0, z=z, y=LABELS, needs_grad=False),
}
STILL: dict[str, Callable[[Tensor], Message]] = {
    "an activation": lambda z: Smashed(step=0, z=z, y=LABELS),
    "a cut gradient": lambda dz: Gradient(step=0, loss=1.0, dz=dz),
}
LABELS = torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize("what", UNSETTLED)
def test_a_message_whose_tensors_may_change_is_a_copy_of_them(what: str) -> None:
    """An optimiser that steps in place must not change what is still to be sent, or sent again."""
    tensor = torch.ones(2, 3)
    message = UNSETTLED[what](tensor)
    sender, receiver = ends_for(message)
    frames = sender.pack(message)
    tensor.zero_()
    heard = receiver.feed(frames[0].data).message
    assert content(heard) == content(UNSETTLED[what](torch.ones(2, 3)))


@pytest.mark.parametrize("what", STILL)
def test_a_tensor_that_lies_still_is_copied_when_its_turn_has_come(what: str) -> None:
    """Not before, and a frame that is sent again has the same bytes."""
    tensor = normal((2, 700), 0)
    message = STILL[what](tensor)
    sender, receiver = ends_for(message, chunk_bytes=1000)
    frames = sender.pack(message)
    address, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
    lying = [np.frombuffer(piece, np.uint8).ctypes.data for frame in frames for piece in frame.pieces[1:]]
    assert sum(address <= at < end for at in lying) == 6
    assert [bytes(frame) for frame in frames] == [frame.data for frame in sender.resend(0)]
    (heard,) = [got.message for frame in frames if (got := receiver.feed(bytes(frame))).message is not None]
    assert content(heard) == content(message)


# --- its frames


@LAW
@given(messages, st.integers(1, 64) | st.just(CHUNK_BYTES))
def test_a_message_has_as_many_frames_as_its_body_has_chunks(message: Message, chunk_bytes: int) -> None:
    sender, receiver = ends_for(message, chunk_bytes=chunk_bytes)
    frames, _ = carry(sender, receiver, message)
    assert len(frames) == max(1, math.ceil(body_nbytes(message) / chunk_bytes))
    assert [frame.seq for frame in frames] == list(range(1, len(frames) + 1))
    assert (sender.delivery.sent, receiver.received) == (len(frames), len(frames))


def test_a_large_message_is_a_header_in_its_first_frame_and_chunks_of_a_mebibyte() -> None:
    frames = [pb.ClientFrame.FromString(frame.data) for frame in ends_for(batch(1))[0].pack(batch(1000, 700))]
    assert [frame.WhichOneof("header") for frame in frames] == ["smashed", None, None]
    assert [len(frame.chunk) for frame in frames] == [CHUNK_BYTES, CHUNK_BYTES, 1000 * (4 * 700 + 8) - 2 * CHUNK_BYTES]


def test_the_bytes_stay_as_they_are() -> None:
    """Golden: another version, or another language, reads the same frames."""
    message = Smashed(step=2, z=torch.tensor([[1.0, -2.0]]), y=torch.tensor([7]), round=1)
    header = "2a2f080210012001"  # smashed: step 2, round 1, train
    header += "280132110a08" + b"identity".hex() + "10051a01012008"  # needs_grad; y: int64 (1,), 8 bytes
    header += "3a120a08" + b"identity".hex() + "10011a0201022008"  # z: float32 (1, 2), 8 bytes
    chunk = "7a1007000000000000000000803f000000c0"  # y, then z
    assert ends_for(message)[0].pack(message)[0].data.hex() == "0801" + header + chunk  # seq 1


def test_timing_rides_beside_the_batch() -> None:
    timing = Timing(step=2, forward=0.1, encode=0.2, round_trip=0.3, decode=0.4, backward=0.5)
    sender, receiver = ends_for(batch(1), chunk_bytes=8)
    message = batch(2, 2)
    received = [receiver.feed(frame.data) for frame in sender.pack(message, timing=timing)]
    assert [one.timing for one in received] == [timing] + [None] * (len(received) - 1)
    assert content(received[-1].message) == content(message)
    assert carry(sender, receiver, message)[1][0].timing is None


# --- its bytes


@LAW
@given(messages, st.integers(1, 64) | st.just(CHUNK_BYTES))
def test_bytes_are_counted_alike_on_both_sides(message: Message, chunk_bytes: int) -> None:
    frames, received = carry(*ends_for(message, chunk_bytes=chunk_bytes), message)
    for frame, one in zip(frames, received, strict=True):
        assert sum(nbytes for _, nbytes in frame.tally) == len(frame.data) + GRPC_PREFIX
        assert sum(nbytes for _, nbytes in one.tally) == len(frame.data) + GRPC_PREFIX
        assert {kind for kind, _ in frame.tally} - {"labels"} == {kind_of(message)}


@LAW
@given(DRAWN[Smashed], st.integers(1, 64) | st.just(CHUNK_BYTES))
def test_labels_are_counted_apart(message: Smashed, chunk_bytes: int) -> None:
    """Whatever frames they lie in: their bytes and no others, the same on both sides, and no kind gets less than nothing."""
    frames, received = carry(*ends_for(message, chunk_bytes=chunk_bytes), message)
    assert [frame.tally for frame in frames] == [one.tally for one in received]
    counted = [entry for frame in frames for entry in frame.tally]
    assert all(nbytes > 0 for _, nbytes in counted)
    labels = sum(nbytes for kind, nbytes in counted if kind == "labels")
    assert labels == (0 if kind_of(message) == "eval" else len(bytes_of(message.y)))


@pytest.mark.parametrize(
    ("message", "kinds"),
    [
        (batch(2, 3), ["smashed", "labels"]),
        (batch(2, 3, needs_grad=False), ["smashed", "labels"]),
        (batch(2, 3, train=False), ["smashed", "labels"]),
        (batch(2, 3, train=False, needs_grad=False), ["eval"]),
        (Gradient(step=0, loss=1.0, dz=torch.zeros(2)), ["gradient"]),
        (Gradient(step=0, loss=1.0), ["control"]),
        (Begin(round=0, rounds=1, weights={"lower": {"w": torch.zeros(2)}}), ["weights"]),
        (Done(round=0, wave=0, steps=0, samples=0), ["control"]),
        (Bye(reason="", finished=True), ["control"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else type(value).__name__,
)
def test_bytes_count_under_the_kind_that_is_documented(message: Message, kinds: list[str]) -> None:
    frames, received = carry(*ends_for(message), message)
    assert [kind for kind, _ in frames[0].tally] == kinds
    assert frames[0].tally == received[0].tally


@pytest.mark.parametrize("where", ["first", "in the middle", "twice"])
def test_a_chunk_is_found_wherever_protobuf_allows_it(where: str) -> None:
    """We write it last, where it is read without parsing the frame; another implementation need not."""
    message = batch(3, 5)
    sender, receiver = ends_for(message)
    (frame,) = sender.pack(message)
    parsed = pb.ClientFrame.FromString(frame.data)
    chunk = pb.ClientFrame(chunk=parsed.chunk).SerializeToString()
    parsed.ClearField("chunk")
    head, seq = parsed.SerializeToString(), pb.ClientFrame(seq=parsed.seq).SerializeToString()
    data = {
        "first": chunk + head,
        "in the middle": seq + chunk + head,
        "twice": pb.ClientFrame(chunk=b"not this one").SerializeToString() + head + chunk,  # the last one counts
    }[where]
    heard = receiver.feed(data).message
    assert content(heard) == content(message)
