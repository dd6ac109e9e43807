"""Buffers whose size the peer decides: each is driven to its bound by a peer that means harm, and grows no further."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import SupportsBytes

import pytest
import torch
from live import ClientThread, LiveServer, serving
from test_quorum import begun, world_of
from world import make_config

from sl_client.inference.lower_cache import KEPT_LOWERS, LowerCache
from sl_client.transport.stream import GrpcStream
from sl_common.client.flow import Flow
from sl_common.client.snapshots import Snapshots
from sl_common.codec import Link
from sl_common.codec.masked import Masked
from sl_common.errors import Refused, WireError
from sl_common.messages.facts import ClientLate
from sl_common.messages.inference import Offer, Query, Scores
from sl_common.messages.training import (
    MOST_LATE,
    Alive,
    Begin,
    Done,
    Gradient,
    Late,
    Message,
    Ready,
    Smashed,
    Welcome,
)
from sl_common.proto import split_pb2 as pb
from sl_common.protocol import Await
from sl_common.tensors import state_digest
from sl_common.wire import Endpoint
from sl_common.wire.causes import WORDS
from sl_common.wire.delivery import ACK_MESSAGES
from sl_common.wire.incoming import CallKind
from sl_common.wire.outgoing import Outgoing
from sl_server.transport.server_stream import ServerStream
from sl_server.transport.streams import FRAME_OVERHEAD

WINDOW = 2


def until_refused(act: Callable[[int], object]) -> str:
    """Do it again and again; the text of the WireError that ends it."""
    for number in range(1000):
        try:
            act(number)
        except WireError as error:
            return str(error)
    raise AssertionError("there is no bound")


class Pair:
    """A client's and a server's real endpoints; either may hold back its acknowledgements."""

    def __init__(self, *, link: Link | None = None, call: CallKind = "train") -> None:
        def end(side: str) -> Endpoint:
            return Endpoint(side, link=link or Link(), limit_bytes=1 << 20, call=call, window=WINDOW)

        self.client, self.server = end("client"), end("server")
        self.most: dict[str, int] = {}  # what a side acknowledges at most

    def up(self, message: Message) -> None:
        for frame in self.client.pack(message):
            said = pb.ClientFrame.FromString(frame.data)
            said.ack = min(said.ack, self.most.get("client", said.ack))
            self.server.feed(said.SerializeToString())

    def down(self, message: Message) -> None:
        for frame in self.server.pack(message):
            said = pb.ServerFrame.FromString(frame.data)
            said.ack = min(said.ack, self.most.get("server", said.ack))
            self.client.feed(said.SerializeToString())

    def begin(self, round: int = 0) -> None:
        self.down(Begin(round=round, rounds=9))

    def joined(self) -> Pair:
        self.down(Welcome(config="", client="c0", shard=0, shards=1))
        self.up(Ready(samples=9, batches=9))
        self.begin()
        return self


def batch(step: int, *, round: int = 0, train: bool = True, needs_grad: bool = True) -> Smashed:
    y = torch.zeros(2, dtype=torch.int64)
    return Smashed(step=step, z=torch.ones(2, 3), y=y, round=round, train=train, needs_grad=needs_grad)


def reply(step: int, *, needs_grad: bool = True) -> Gradient:
    return Gradient(step=step, loss=0.0, dz=torch.ones(2, 3) if needs_grad else None)


KINDS = [
    pytest.param({"train": True, "needs_grad": True}, id="training"),
    pytest.param({"train": True, "needs_grad": False}, id="forward only"),
    pytest.param({"train": False, "needs_grad": False}, id="evaluation"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_client_that_acknowledges_no_reply_gets_no_further_than_its_window(kind: dict[str, bool]) -> None:
    pair = Pair().joined()
    pair.most["client"] = pair.server.delivery.sent  # Welcome and Begin, and nothing more
    for step in range(WINDOW):
        pair.up(batch(step, **kind))
        pair.down(reply(step, needs_grad=kind["needs_grad"]))
    kept = pair.server.unacknowledged
    with pytest.raises(
        WireError, match=r"batch 2 begins though the reply to 0 is not acknowledged: .*client.window = 2"
    ):
        pair.up(batch(WINDOW, **kind))
    assert pair.server.unacknowledged == kept == WINDOW


@pytest.mark.parametrize("kind", KINDS)
def test_a_client_that_has_its_whole_window_under_way_is_honest(kind: dict[str, bool]) -> None:
    """Its acknowledgement of a reply comes with the batch that takes the reply's place, and no sooner."""
    pair = Pair().joined()
    most = 0
    for round in range(3):
        for step in range(20):
            pair.up(batch(step, round=round, **kind))
            if step >= WINDOW - 1:
                pair.down(reply(step - WINDOW + 1, needs_grad=kind["needs_grad"]))
            most = max(most, pair.server.unacknowledged, pair.client.unacknowledged)
        pair.up(Done(round=round, wave=0, steps=20, samples=40))
        pair.down(reply(19, needs_grad=kind["needs_grad"]))
        pair.begin(round + 1)
    assert most <= WINDOW + 1


def test_a_server_that_acknowledges_nothing_is_left() -> None:
    pair = Pair().joined()
    pair.most["server"] = pair.client.delivery.sent
    for step in range(WINDOW):
        pair.up(batch(step))
    with pytest.raises(WireError, match="the reply to 0 answers message 2, but acknowledges 1 messages"):
        pair.down(reply(0))
    assert pair.client.unacknowledged == WINDOW


def test_the_next_wave_acknowledges_the_one_before() -> None:
    pair = Pair().joined()
    pair.most["server"] = pair.client.delivery.sent
    pair.up(Done(round=0, wave=0, steps=0, samples=0))
    with pytest.raises(WireError, match="begin answers message 2, but acknowledges 1 messages"):
        pair.begin(1)


@pytest.mark.parametrize("says", [batch(0), Done(round=0, wave=0, steps=0, samples=0)])
def test_who_begins_a_wave_has_its_begin(says: Message) -> None:
    pair = Pair()
    pair.most["client"] = 1
    with pytest.raises(WireError, match="answers message 2, but acknowledges 1 messages"):
        pair.joined().up(says)


def test_who_is_ready_has_the_welcome() -> None:
    pair = Pair()
    pair.most["client"] = 0
    with pytest.raises(WireError, match="ready answers message 1, but acknowledges 0 messages"):
        pair.joined()


def test_what_crosses_with_a_word_of_being_late_is_honest() -> None:
    """The server had not heard of the client's batches and Done when it said Late and the next Begin."""
    pair = Pair().joined()
    crossing = [f for m in (batch(0), Done(round=0, wave=0, steps=1, samples=2)) for f in pair.client.pack(m)]
    pair.down(Late(round=0, wave=0))
    pair.begin(1)
    for frame in crossing:
        pair.server.feed(frame.data)
    pair.up(batch(0, round=1))
    pair.down(reply(0))


def test_queries_and_scores_keep_the_same_rule() -> None:
    pair = Pair(call="infer")
    pair.down(Offer(config=""))
    pair.up(Query(step=0, z=torch.ones(1, 3)))
    pair.most["server"] = pair.client.delivery.sent - 1
    with pytest.raises(WireError, match="the reply to 0 answers message 1, but acknowledges 0 messages"):
        pair.down(Scores(step=0, scores=torch.ones(1, 2)))
    pair = Pair(call="infer")
    pair.down(Offer(config=""))
    pair.most["client"] = 1
    for step in range(WINDOW):
        pair.up(Query(step=step, z=torch.ones(1, 3)))
        pair.down(Scores(step=step, scores=torch.ones(1, 2)))
    with pytest.raises(WireError, match="query 2 begins though the reply to 0 is not acknowledged"):
        pair.up(Query(step=WINDOW, z=torch.ones(1, 3)))


def test_messages_that_nothing_acknowledges_are_bounded_all_the_same() -> None:
    pair = Pair().joined()
    most = (MOST_LATE + 1) * WINDOW + WORDS
    text = until_refused(lambda number: pair.server.pack(Late(round=number, wave=0)))
    assert f"{most} messages to the peer are not acknowledged, at most {most} are kept" in text
    assert pair.server.unacknowledged == most
    assert len(pair.server.delivery._unacked) == most


def test_signs_of_life_are_acknowledged_in_time() -> None:
    """A client that computes for days says nothing else."""
    pair = Pair().joined()
    most = 0
    for samples in range(1000):
        pair.up(Alive(samples=samples))
        bare = pair.server.acknowledgement()
        if bare is not None:
            pair.client.feed(bare.data)
        most = max(most, pair.client.unacknowledged)
    assert most <= ACK_MESSAGES


def test_activations_of_batches_that_are_never_answered_are_forgotten() -> None:
    """A gradient codec may need the activation; batches of waves that went on without a client get no gradient."""
    pair = Pair(link=Link(down=Masked())).joined()
    for step in range(50):
        for frame in pair.client.pack(batch(step)):
            pair.server.feed(frame.data)
    assert list(pair.server._codings._likes) == list(pair.client._codings._likes) == [48, 49]


def test_checked_headers_that_are_kept_are_short() -> None:
    """Fields that nobody knows are bytes all the same."""
    junk = pb.Tensor(codec="identity", dtype=1, shape=[1], nbytes=4).SerializeToString() + bytes(
        [0xFA, 0x07, 0xD0, 0x0F]
    )
    tensor = pb.Tensor.FromString(junk + bytes(2000))
    y = pb.Tensor(codec="identity", dtype=5, shape=[1], nbytes=8)
    frame = pb.ClientFrame(seq=1, ack=0, smashed=pb.Smashed(y=y, z=tensor))
    with pytest.raises(WireError, match=r"tensor header of 20\d\d bytes, at most 512 are allowed"):
        Pair().server.feed(frame.SerializeToString())


# --- what was sent and is not read


class Numbered(bytes):
    """A frame with a number."""

    seq = 0


def numbered(seq: int) -> SupportsBytes:
    frame = Numbered(b"x")
    frame.seq = seq
    return frame


def test_nobody_has_what_has_not_gone_out() -> None:
    outgoing = Outgoing()
    outgoing.check(10**6)
    outgoing.queue(b"a greeting")
    for seq in range(7, 10):  # those before arrived on a former stream
        outgoing.queue(numbered(seq))
    outgoing.check(6)
    outgoing.hand(b"a greeting")
    outgoing.hand(numbered(7))
    outgoing.check(7)
    with pytest.raises(WireError, match="acknowledges frame 8, but frame 8 has not gone out yet"):
        outgoing.check(8)
    outgoing.hand(numbered(8))
    outgoing.hand(numbered(9))
    outgoing.check(9)


def test_an_outbox_that_is_not_read_cannot_be_acknowledged_away() -> None:
    """The peer's numbers can be guessed; what lies in the outbox is what is not acknowledged, and that is bounded."""

    class Stuck:
        """Flow control: the peer reads nothing."""

        async def write(self, _data: bytes) -> None:
            await asyncio.sleep(3600)

    async def scenario() -> None:
        stream = ServerStream("peer")
        stream.send([b"greeting", *(numbered(seq) for seq in range(1, 30))])
        writer = asyncio.create_task(stream.write_to(Stuck()))
        await asyncio.sleep(0.05)
        assert stream.waiting == 30
        stream.outgoing.check(0)
        with pytest.raises(WireError, match="acknowledges frame 29, but frame 1 has not gone out yet"):
            stream.outgoing.check(29)
        writer.cancel()

    asyncio.run(scenario())


def test_frames_of_no_bytes_fill_the_inbox_too() -> None:
    """A stream is not read on while too much of it waits for the engine; each frame costs something."""

    async def scenario() -> None:
        live = LiveServer(make_config("parallel"))  # its loop does not run
        stream = ServerStream("peer")
        for _ in range(1000):
            live.engine.inbox.received(stream, b"")
        assert stream.posted == live.engine.inbox.backlog == 1000 * FRAME_OVERHEAD

    asyncio.run(scenario())


class Mute(GrpcStream):
    """A client that never acknowledges more than the first frames."""

    def send(self, frame: SupportsBytes) -> None:
        said = pb.ClientFrame.FromString(bytes(frame))
        said.ack = min(said.ack, 2)
        super().send(said.SerializeToString())


def test_a_client_that_never_acknowledges_is_refused_and_the_others_train() -> None:
    config = make_config("parallel", run__clients=2, client__wave="{ steps = 40 }", run__rounds=1, eval__every=0)
    with serving(config) as live:
        clients = [ClientThread(live.address), ClientThread(live.address, Mute)]
        for client in clients:
            client.join(60)
    assert clients[0].bye is not None
    assert isinstance(clients[1].error, Refused)
    assert clients[1].error.code == "protocol"
    assert "is not acknowledged" in str(clients[1].error)
    steps = clients[1].runner.connection.session.endpoint.received
    assert steps <= 2 + config.client.window


# --- clients that are behind


def test_what_waits_for_a_client_that_is_late_again_and_again_is_bounded() -> None:
    """It is left in peace until it is heard of; then it takes part again."""
    for back in (False, True):
        world = begun(world_of("parallel", run__rounds=3 * MOST_LATE))
        world.slow = {"c1"}
        c1, most, wave = world.clients["c1"], 0, 0
        while len(world.coordinator.roster["c1"].late) < MOST_LATE:
            world.run()
            world.sessions.tick(2.0 * (wave := wave + 1))
            world.run(until=1)
            most = max(most, c1.session.endpoint.unacknowledged)
        world.slow = set() if back else world.slow
        world.run()
        assert max(most, c1.session.endpoint.unacknowledged) <= 2 * MOST_LATE + 2
        assert world.coordinator.ended.finished
        late = sum(isinstance(f, ClientLate) for f in world.facts)
        assert late == MOST_LATE
        assert world.coordinator.roster["c1"].taught == back


def life() -> Iterator[Await]:
    """Waits for a reply, and so for no word."""
    yield Await(0)


def test_a_server_that_offers_another_lower_segment_each_time_fills_no_disk(tmp_path: Path) -> None:
    lowers = LowerCache(tmp_path)
    shas = []
    for number in range(2 * KEPT_LOWERS):
        state = {"w": torch.full((3,), float(number))}
        shas.append(state_digest(state))
        assert lowers.keep(shas[-1], state) == ""
        assert lowers.find(shas[0]) is not None, "it is used all the time"
    assert len(list(tmp_path.iterdir())) == KEPT_LOWERS
    assert [lowers.find(sha) is not None for sha in shas] == [True] + [False] * KEPT_LOWERS + [True] * (KEPT_LOWERS - 1)


@pytest.mark.parametrize("number", [1, -1])
def test_a_server_that_thinks_up_checkpoints_makes_nobody_keep_more_snapshots(number: int) -> None:
    snapshots = Snapshots("run")
    for wave in range(1, 100):
        checkpoint = 1000 + number * wave
        snapshots.drop_after(checkpoint)
        snapshots.keep(checkpoint, dict)
        assert len(snapshots.numbers) <= 2


@pytest.mark.parametrize("word", [Begin(round=0, rounds=1), Welcome(config="", client="", shard=0, shards=1)])
def test_words_that_a_client_does_not_await_are_bounded(word: Message) -> None:
    flow = Flow(life())
    text = until_refused(lambda _: flow.deliver(word))
    assert f"{MOST_LATE + 1} of them wait to be heeded, at most {MOST_LATE} may" in text
    assert len(flow._words) == MOST_LATE + 1


def test_waves_of_which_it_never_heard_are_bounded() -> None:
    flow = Flow(life())
    text = until_refused(lambda wave: flow.deliver(Late(round=0, wave=wave)))
    assert f"late: {MOST_LATE + 1} of them wait to be heeded" in text
    assert len(flow._late) == MOST_LATE + 1
