"""Exactly once, in order, whatever the streams do: two real endpoints over links that break anywhere."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
import torch
from drawn import LAW, PEER, Side, content, endpoint, said_by
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from sl_common.errors import WireError
from sl_common.messages.training import Alive, Bye, Message, Smashed
from sl_common.proto import split_pb2 as pb
from sl_common.wire import Endpoint
from sl_common.wire.accounting import GRPC_PREFIX
from sl_common.wire.delivery import ACK_EVERY

SIDES: tuple[Side, ...] = ("client", "server")
side = st.sampled_from(SIDES)
few = st.integers(0, 6)


class Conversation(RuleBasedStateMachine):
    """Both say what they like; frames fly, one direction apart from the other; the stream is cut at any moment."""

    def __init__(self) -> None:
        super().__init__()
        self.ends = {s: endpoint(s, chunk_bytes=16) for s in SIDES}  # most messages take several frames
        self.flying: dict[Side, deque[bytes]] = {s: deque() for s in SIDES}  # by who sent them
        self.said: dict[Side, deque[Any]] = {s: deque() for s in SIDES}  # and not yet heard by the other

    @rule(data=st.data(), s=side)
    def say(self, data: st.DataObject, s: Side) -> None:
        message = data.draw(said_by[s])
        self.said[s].append(content(message))
        self.flying[s].extend(frame.data for frame in self.ends[s].pack(message))

    @rule(s=side, count=few)
    def deliver(self, s: Side, count: int) -> None:
        for _ in range(min(count, len(self.flying[s]))):
            self.hear(s, self.flying[s].popleft())

    def hear(self, s: Side, frame: bytes) -> None:
        message = self.ends[PEER[s]].feed(frame).message
        if message is not None:
            assert content(message) == self.said[s].popleft()

    @rule(lost=few, late_up=few, late_down=few)
    def cut(self, lost: int, late_up: int, late_down: int) -> None:
        """Of the old stream's frames all are lost but a few that are read after both sides said what they have.

        `lost` more frames come off the end of what is resent: the new stream breaks too.
        """
        old, late = self.flying, {"client": late_up, "server": late_down}
        self.flying = {s: deque(list(old[s])[: late[s]]) for s in SIDES}
        has = {s: self.ends[s].received for s in SIDES}
        for s in SIDES:
            again = [frame.data for frame in self.ends[s].resend(has[PEER[s]])]
            self.flying[s].extend(again)
        if lost:
            self.flying = {s: deque(list(self.flying[s])[:-lost]) for s in SIDES}
            self.deliver("client", 6)
            self.cut(lost=0, late_up=0, late_down=0)

    @rule()
    def half_a_greeting(self) -> None:
        """The server took the hello and resends, but its answer is lost with all that follows."""
        self.ends["server"].resend(self.ends["client"].received)
        self.cut(lost=0, late_up=0, late_down=0)

    def teardown(self) -> None:
        """In the end both have heard everything, and owe each other nothing but acknowledgements."""
        self.cut(lost=0, late_up=0, late_down=0)
        for s in SIDES:
            self.deliver(s, len(self.flying[s]))
            assert not self.said[s]
            assert self.ends[s].resend(self.ends[PEER[s]].received) == []


TestConversation = Conversation.TestCase
TestConversation.settings = settings(LAW, max_examples=60, stateful_step_count=40)


def pair(**options: int) -> tuple[Endpoint, Endpoint]:
    return endpoint("client", **options), endpoint("server", **options)


def say(sender: Endpoint, receiver: Endpoint, message: Message) -> list[Message | None]:
    return [receiver.feed(frame.data).message for frame in sender.pack(message)]


@LAW
@given(said_by["client"], st.integers(1, 3))
def test_a_frame_that_comes_again_is_ignored(message: Message, times: int) -> None:
    client, server = pair(chunk_bytes=32)
    frames = client.pack(message)
    heard = [server.feed(f.data) for f in frames for _ in range(times)]
    assert [content(r.message) for r in heard if r.message is not None] == [content(message)]
    for frame in frames:
        again = server.feed(frame.data)
        assert again.message is None
        assert again.tally == (("control", len(frame.data) + GRPC_PREFIX),)
    assert server.received == client.delivery.sent


def test_a_resent_frame_has_the_same_bytes() -> None:
    client, _ = pair(chunk_bytes=8)
    frames = client.pack(Smashed(step=0, z=torch.ones(3, 4), y=torch.zeros(3, dtype=torch.int64)))
    assert [f.data for f in client.resend(2)] == [f.data for f in frames[2:]]


def test_an_acknowledgement_frees_the_frames_it_covers() -> None:
    client, server = pair()
    for samples in range(5):
        say(client, server, Alive(samples=samples))
    assert [frame.seq for frame in client.delivery._unacked] == [1, 2, 3, 4, 5]
    say(server, client, Bye(reason="", finished=True))
    client.pack(Alive(samples=5))
    assert [frame.seq for frame in client.delivery._unacked] == [6]
    with pytest.raises(WireError, match="peer has received frame 4, we know 5"):
        client.resend(4)


def test_a_silent_side_owes_an_acknowledgement_after_enough_bytes() -> None:
    client, server = pair()
    batch = Smashed(step=0, z=torch.zeros(1024, 1024), y=torch.zeros(1024, dtype=torch.int64))
    for frame in client.pack(batch):
        assert server.acknowledgement() is None
        server.feed(frame.data)
    assert len(client.delivery._unacked) == 5
    say(client, server, batch)
    owed = server.acknowledgement()
    assert owed is not None
    assert owed.seq == 0
    assert owed.tally == (("control", len(owed.data) + GRPC_PREFIX),)
    assert server.acknowledgement() is None
    received = client.feed(owed.data)
    assert received.message is None
    assert received.tally == owed.tally
    assert client.resend(server.received) == []
    assert server.delivery.sent == client.received == 0


def test_an_acknowledgement_may_be_given_at_once() -> None:
    client, server = pair()
    assert client.all_acknowledged
    say(client, server, Alive(samples=1))
    assert not client.all_acknowledged
    owed = server.acknowledgement(at_once=True)
    assert owed is not None
    client.feed(owed.data)
    assert client.all_acknowledged


def test_an_older_acknowledgement_takes_nothing_back() -> None:
    """A resent frame carries what its sender knew when it was made."""
    client, server = pair()
    for samples in range(5):
        say(client, server, Alive(samples=samples))
    for ack in (3, 1):
        client.feed(pb.ServerFrame(ack=ack).SerializeToString())
    with pytest.raises(WireError, match="received frame 2, we know 3"):
        client.resend(2)


def test_whatever_is_said_acknowledges_too() -> None:
    client, server = pair()
    for _ in range(ACK_EVERY // (4 << 20)):
        say(client, server, Smashed(step=0, z=torch.zeros(1024, 1024), y=torch.zeros(1024, dtype=torch.int64)))
    say(server, client, Bye(reason="", finished=True))
    assert server.acknowledgement() is None
    assert client.all_acknowledged


@pytest.mark.parametrize("received", [0, 1, 6, 2**63])
def test_a_peer_that_claims_what_cannot_be_is_wrong(received: int) -> None:
    client, server = pair()
    for samples in range(5):
        say(client, server, Alive(samples=samples))
    client.feed(pb.ServerFrame(ack=2).SerializeToString())
    with pytest.raises(WireError, match=f"received frame {received}, we know 2 and sent 5"):
        client.resend(received)


@pytest.mark.parametrize("seq", [3, 4, 2**64 - 1])
def test_a_gap_in_the_numbers_is_an_error(seq: int) -> None:
    client, server = pair()
    say(client, server, Alive(samples=0))
    with pytest.raises(WireError, match=f"frame {seq} follows frame 1"):
        server.feed(pb.ClientFrame(seq=seq, alive=pb.Alive()).SerializeToString())


def test_a_link_may_break_in_the_middle_of_a_message() -> None:
    client, server = pair(chunk_bytes=8)
    batch = Smashed(step=0, z=torch.ones(3, 4), y=torch.zeros(3, dtype=torch.int64))
    frames = client.pack(batch)
    for frame in frames[:4]:
        assert server.feed(frame.data).message is None
    heard = [server.feed(frame.data).message for frame in client.resend(server.received)]
    assert len(heard) == len(frames) - 4
    assert content(heard[-1]) == content(batch)
