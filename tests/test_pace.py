"""Slow links: frames that shrink and grow, what is under way at once, and that nothing is lost or doubled when they are cut anew."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
import torch
from drawn import LAW, PEER, Side, content, endpoint, said_by
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule
from test_faults import simulated_sha
from world import World, make_config, run_world

from sl_common.errors import Refused
from sl_common.limits import PeerLimits
from sl_common.messages.training import Done, Smashed
from sl_common.wire import CHUNK_BYTES, Endpoint, Frame, Hello
from sl_common.wire.pace import FRAMES_AHEAD, LEAST
from sl_server.transport.deadlines import Deadlines

SIDES: tuple[Side, ...] = ("client", "server")
side = st.sampled_from(SIDES)
SMALL = CHUNK_BYTES // LEAST


class SlowConversation(RuleBasedStateMachine):
    """Both say what they like; the stream is cut at any moment, and what was lost may be cut anew. Of an old stream nothing is read."""

    def __init__(self) -> None:
        super().__init__()
        self.ends = {s: endpoint(s, chunk_bytes=16) for s in SIDES}
        self.flying: dict[Side, deque[bytes]] = {s: deque() for s in SIDES}  # by who sent them
        self.said: dict[Side, deque[Any]] = {s: deque() for s in SIDES}  # and not yet heard by the other
        self.now = 0.0

    def send(self, s: Side, frames: list[Frame]) -> None:
        self.flying[s].extend(frame.data for frame in frames)

    @rule(data=st.data(), s=side)
    def say(self, data: st.DataObject, s: Side) -> None:
        message = data.draw(said_by[s])
        self.said[s].append(content(message))
        self.send(s, self.ends[s].pack(message))

    @rule(s=side, count=st.integers(0, 6), took=st.sampled_from([0.0, 0.001, 1.0, 30.0]))
    def deliver(self, s: Side, count: int, took: float) -> None:
        for _ in range(min(count, len(self.flying[s]))):
            self.now += took
            message = self.ends[PEER[s]].feed(self.flying[s].popleft()).message
            if message is not None:
                assert content(message) == self.said[s].popleft()
            self.send(PEER[s], self.ends[PEER[s]].due(self.now))

    @rule(slow=st.booleans(), half=st.integers(0, 2))
    def cut(self, slow: bool, half: int) -> None:
        """`half` Hellos before reached the server, but its answers did not come back."""
        received = {s: self.ends[s].received for s in SIDES}
        for _ in range(half + 1):
            down = self.ends["server"].resend(received["client"], slow=slow)
        up = self.ends["client"].resend(received["server"], slow=slow)
        self.flying = {s: deque() for s in SIDES}
        self.send("server", down)
        self.send("client", up)

    def teardown(self) -> None:
        """Nothing waits for ever: in the end both have heard everything."""
        self.cut(slow=False, half=0)
        while any(self.flying.values()):
            for s in SIDES:
                self.deliver(s, 6, 0.001)
        self.cut(slow=False, half=0)
        for s in SIDES:
            assert not self.said[s]
            assert self.ends[s].all_acknowledged
            assert self.ends[s].messages_acknowledged == self.ends[s].messages_sent


TestSlowConversation = SlowConversation.TestCase
TestSlowConversation.settings = settings(LAW, max_examples=60, stateful_step_count=40)


@pytest.mark.parametrize("preset", ["splitfed_v1", "sequential", "locfedmix"])
def test_runs_whose_links_are_cut_and_slow_end_with_the_same_bits(preset: str) -> None:
    """Weights of 133 kB and batches of 65 kB in frames of 4 KiB and more, cut in the middle, again and again, in any order."""
    config = make_config(preset, run__rounds=1, model__args="{ hidden = [512] }")
    expected, anew = simulated_sha(config), 0
    for seed in range(8):
        world = World(config, seed)
        world.cut_every, world.slow_share = 7 + 5 * seed, 0.4
        for _ in range(config.run.clients):
            world.join()
        world.run()
        assert world.coordinator.weights_sha256() == expected
        anew += world.anew
    assert anew >= 8, "messages of which the peer had a part were cut anew"


def batch(nbytes: int) -> Smashed:
    return Smashed(step=0, z=torch.arange(nbytes // 4, dtype=torch.float32).reshape(1, -1), y=torch.zeros(1).long())


def slow_pair() -> tuple[Endpoint, Endpoint]:
    """The client was told that its link is slow."""
    ends = endpoint("client", chunk_bytes=CHUNK_BYTES), endpoint("server", chunk_bytes=CHUNK_BYTES)
    assert ends[0].resend(0, slow=True) == []
    return ends


def carried(client: Endpoint, server: Endpoint, frames: list[Frame], frame_s: float, now: float = 0.0) -> list[Frame]:
    """All the frames that it takes, one by one, each acknowledged after so many seconds."""
    waiting, sent = deque(frames), []
    while waiting:
        frame = waiting.popleft()
        sent.append(frame)
        server.feed(frame.data)
        now += frame_s
        for answer in server.due(now):
            client.feed(answer.data)
        waiting.extend(client.due(now))
    return sent


def chunk_of(frame: Frame) -> int:
    from sl_common.proto import split_pb2 as pb

    return len(pb.ClientFrame.FromString(frame.data).chunk)


def test_on_a_slow_link_little_is_under_way_and_each_frame_is_acknowledged() -> None:
    client, server = slow_pair()
    first = client.pack(batch(300_000))
    assert [chunk_of(frame) for frame in first] == [SMALL] * FRAMES_AHEAD
    assert client.holds_frames
    sent = carried(client, server, first, frame_s=2.0)
    assert {chunk_of(frame) for frame in sent[:-1]} == {SMALL}, "a frame in 2 s is as slow as it gets"
    assert client.all_acknowledged
    assert sum(chunk_of(frame) for frame in sent) == 300_008


def test_frames_grow_as_fast_as_acknowledgements_come_and_are_ordinary_in_the_end() -> None:
    client, server = slow_pair()
    sizes = [chunk_of(frame) for frame in carried(client, server, client.pack(batch(16 << 20)), frame_s=0.001)]
    assert max(sizes) == CHUNK_BYTES
    assert not client.sends_small_frames
    assert len(sizes) < 16 + 8 * 2 * FRAMES_AHEAD
    frames = client.pack(batch(3 << 20))
    assert [chunk_of(frame) for frame in frames] == [CHUNK_BYTES] * 3 + [8]
    for frame in frames:
        server.feed(frame.data)
        assert not server.due(0.0), "nobody waits for a word"


def test_what_is_right_for_a_link_is_two_frames_a_second() -> None:
    client, server = slow_pair()
    rate, now, sizes = 64_000, 0.0, []
    waiting = deque(client.pack(batch(4 << 20)))
    while waiting:
        frame = waiting.popleft()
        sizes.append(chunk_of(frame))
        now += sizes[-1] / rate
        server.feed(frame.data)
        for answer in server.due(now):
            client.feed(answer.data)
        waiting.extend(client.due(now))
    assert 0.4 * rate < sizes[-2] <= rate / 2


def test_a_link_that_gets_slower_gets_smaller_frames() -> None:
    client, server = slow_pair()
    carried(client, server, client.pack(batch(1 << 20)), frame_s=0.01)
    before = chunk_of(client.pack(batch(8 << 20))[0])
    assert before > 4 * SMALL
    sizes = [chunk_of(frame) for frame in carried(client, server, client.resend(server.received), frame_s=20)]
    assert sizes[-2] <= SMALL * 4 < before


def test_a_message_that_is_one_frame_is_acknowledged_when_it_is_answered() -> None:
    client, server = slow_pair()
    (frame,) = client.pack(batch(SMALL - 8))
    assert server.feed(frame.data).message is not None
    assert not server.due(0.0)
    assert not client.holds_frames


def test_bytes_by_kind_are_the_same_however_a_batch_is_cut() -> None:
    """But for the frames' own headers."""
    labels = torch.zeros(5000).long()
    message = Smashed(step=0, z=torch.zeros(5000, 20), y=labels)
    client, server = endpoint("client", chunk_bytes=CHUNK_BYTES), endpoint("server", chunk_bytes=CHUNK_BYTES)
    ordinary = dict(client.pack(message)[0].tally)
    client.resend(0, slow=True)
    sent = carried(client, server, client.resend(0), frame_s=2.0)
    cut = [dict(frame.tally) for frame in sent]
    assert sum(tally.get("labels", 0) for tally in cut) == ordinary["labels"] == 40_000
    assert 0 < sum(tally["smashed"] for tally in cut) - ordinary["smashed"] < 20 * len(sent)


@LAW
@given(st.integers(0, 30), st.integers(1, 4))
def test_what_the_peer_has_is_not_sent_again_and_the_rest_only_smaller(first: int, then: int) -> None:
    """A message of ordinary frames, of which some came; then its rest in small ones, of which some came; then the rest of that."""
    client, server = endpoint("client", chunk_bytes=256), endpoint("server", chunk_bytes=256)
    message = Done(
        round=0, wave=0, steps=1, samples=1, loss_sum=0.0, weights={"lower": {"w": torch.arange(900.0)}}, digests={}
    )
    whole = None
    for frame in client.pack(message)[:first]:
        whole = server.feed(frame.data).message or whole
    for _ in range(then):
        for frame in client.resend(server.received, slow=True)[:3]:
            whole = server.feed(frame.data).message or whole
    waiting = deque(client.resend(server.received))
    while waiting:
        whole = server.feed(waiting.popleft().data).message or whole
        for answer in server.due(0.0):
            client.feed(answer.data)
        waiting.extend(client.due(0.0))
    assert content(whole) == content(message)


def test_whoever_still_gets_what_it_is_to_answer_need_not_speak() -> None:
    """Weights that take longer than silent_s to go out. Whoever takes none of them has its time and no more."""
    patience = Deadlines(PeerLimits(silent_s=600), now=0.0)
    for minutes, written in [(9, 1), (18, 2), (27, 2)]:
        assert patience.fault(0, 60.0 * minutes, owes=True, held=False, written=written) is None
    silent = patience.fault(0, 60.0 * 28.5, owes=True, held=False, written=2)
    assert silent is not None
    assert silent.code == "silent"


def test_a_hello_that_comes_late_disturbs_nobody() -> None:
    """What the client had when it said that is not what it has now."""
    world = World(make_config("splitfed_v1"))
    client = world.join()
    world.cut(client)
    world.cut(client)
    late = Hello(life=client.life, received=0, resume=True, stream=1, slow=True)
    with pytest.raises(Refused, match="stream 1 of this life; stream 2 was opened before") as refused:
        world.sessions.open(late)
    assert refused.value.code == "replaced"
    assert not client.session.closed


def test_an_ordinary_run_has_no_frame_for_slow_links() -> None:
    """Nor has one whose links break."""
    world = run_world(make_config("splitfed_v1", model__args="{ hidden = [512] }"), cut_every=9)
    assert world.cuts > 3
    assert not any(end.sends_small_frames for c in world.clients.values() for end in (c.endpoint, c.session.endpoint))
