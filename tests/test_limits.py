"""Hostile peers over real sockets: each is slowed or refused with a reason, and those beside it end with the simulator's bits."""

from __future__ import annotations

import gc
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import grpc
import pytest
from authority import TOKENS, write_tokens
from live import ClientThread, LiveServer, serving
from raw_http2 import Line, frame, prefixed
from world import make_config

from sl_client.transport.access import Access
from sl_client.transport.stream import GrpcStream, RefusedForNow
from sl_common.errors import Refused
from sl_common.limits import PeerLimits
from sl_common.messages.training import Ready
from sl_common.proto import split_pb2 as pb
from sl_common.wire import Greeting, Hello, Refusal, read_answer
from sl_server.core.identity import StreamIdentity
from sl_server.security.credentials import Credentials, make_credentials
from sl_server.simulation.simulation import Simulation
from sl_server.transport import server as grpc_server
from sl_server.transport import server_stream
from sl_server.transport.streams import FRAME_OVERHEAD

OTHERS = {
    "data__shards": 4,
    "run__clients": 2,
    "run__grace_s": 0.5,
}  # places for hostile ones, whom the run does not wait for


def limited(**limits: object) -> dict[str, object]:
    return OTHERS | {f"server__limits__{key}": value for key, value in limits.items()}


@contextmanager
def attacked(
    door: Credentials | None = None, access: Callable[[str], Access] | None = None, **limits: object
) -> Iterator[LiveServer]:
    """Inside there is a server with one good client; afterwards the other one comes, and they train as if nothing had been."""
    config = make_config("splitfed_v1", **limited(**limits))
    with serving(config, door) as live:

        def good(name: str, shard: int) -> ClientThread:
            connect = GrpcStream if access is None else partial(GrpcStream, access=access(name))
            return ClientThread(live.address, connect, name=name, shard=shard, shards=4)

        clients = [good("c0", 0)]
        while "c0" not in live.engine.sessions.by_client:
            time.sleep(0.02)
        yield live
        clients.append(good("c1", 1))
        for client in clients:
            client.join(60)
        assert [client.error for client in clients] == [None, None]
        assert "lost" not in clients[0].show.events, "it noticed nothing"
    simulation = Simulation(config)
    simulation.run()
    assert live.coordinator.weights_sha256() == simulation.coordinator.weights_sha256()


class Hostile(GrpcStream):
    """A stream that the test speaks on itself."""

    def hello(self, life: int = 1, **fields: object) -> Greeting | Refusal:
        self.send(Hello(life=life.to_bytes(16, "big"), **({"client": "evil", "shard": 2} | fields)).to_frame())
        try:
            return read_answer(self.receive())
        except RefusedForNow as error:
            return Refusal(code=error.code, reason=str(error))
        except Refused as error:
            return Refusal(code=error.code, reason=error.reason)

    def say(self, **fields: object) -> None:
        self.send(pb.ClientFrame(**fields).SerializeToString())

    def refusal(self) -> str:
        """The reason that comes in the end."""
        while True:
            answer = pb.ServerFrame.FromString(self.receive())
            if answer.WhichOneof("header") == "refusal":
                return answer.refusal.code


@contextmanager
def hostile(live: LiveServer, access: Access | None = None) -> Iterator[Hostile]:
    carrier = Hostile(live.address, access or Access())
    try:
        yield carrier
    finally:
        carrier.close()


def wait_for(live: LiveServer, reason: str, count: int = 1, seconds: float = 15.0) -> None:
    until = time.monotonic() + seconds
    while live.sample("sl_rejected_total", reason=reason) < count:
        assert time.monotonic() < until, f"{live.sample('sl_rejected_total', reason=reason)} of {count} {reason}"
        time.sleep(0.02)


def said(live: LiveServer, reason: str) -> list[str]:
    return [text for text in live.warnings if f"({reason})" in text]


# --- before the Hello


def test_a_stream_that_says_nothing_is_refused_in_time() -> None:
    with attacked(hello_s=0.4) as live, Line(live.address) as line:
        for _ in range(20):
            line.call()
        wait_for(live, "silent", 20)
        assert said(live, "silent") == [
            "refused a client at 127.0.0.1 (silent): said nothing within server.limits.hello_s = 0.4 s"
        ]
        assert line.heard(0.5).count(b"hello_s") == 20, "each is told"


def test_half_of_a_hello_is_no_hello() -> None:
    """A byte now and then keeps nobody waiting."""
    with attacked(hello_s=0.5) as live, Line(live.address) as line:
        stream = line.call()
        line.say(stream, prefixed(b"", says=1000))
        for _ in range(4):
            line.say(stream, b"x")
            time.sleep(0.1)
        wait_for(live, "silent")


def test_a_connection_that_does_not_speak_http2_is_closed() -> None:
    with attacked(hello_s=0.5) as live:
        host, port = live.address.split(":")
        with socket.create_connection((host, int(port)), 10) as line:
            line.settimeout(10)
            with suppress(ConnectionResetError):
                while line.recv(1 << 16):
                    pass


def test_a_connection_without_a_stream_is_closed() -> None:
    with attacked(hello_s=0.5) as live, Line(live.address) as line:
        began = time.monotonic()
        line.heard(15)
        assert time.monotonic() - began < 10


def test_of_too_many_strangers_the_most_silent_go_and_the_good_one_comes_in(caplog: pytest.LogCaptureFixture) -> None:
    with attacked(hello_s=30, strangers=8) as live, ExitStack() as stack:
        for _ in range(4):
            line = stack.enter_context(Line(live.address))
            for _ in range(grpc_server.PENDING_CALLS // 4):  # more at once, and gRPC refuses some before we see them
                line.call()
        wait_for(live, "crowded", grpc_server.PENDING_CALLS - 8)
        with hostile(live) as late:
            assert isinstance(late.hello(), Greeting), "who says Hello is not the most silent one"
        assert len(said(live, "crowded")) == 1
    gc.collect()
    assert not caplog.records, "nor does asyncio tell of each stream that was cut off"


@pytest.mark.slow
def test_two_thousand_half_open_streams_take_no_more_memory_than_those_that_are_allowed() -> None:
    """Each with half a megabyte of a message that does not end: a gigabyte, if all of it were kept."""
    said = prefixed(b"", says=1 << 20) + bytes(500 << 10)
    with attacked(hello_s=60) as live, ExitStack() as stack:
        before = _resident_mb()
        for _ in range(250):
            line = stack.enter_context(Line(live.address))
            line.settle()
            for _ in range(8):  # what HTTP/2's window for a connection lets it send
                line.say(line.call(), said)
        wait_for(live, "crowded", 500, seconds=60)  # of the others gRPC has refused some by itself
        time.sleep(1.0)
        held = live.engine.inbox.limits.strangers + grpc_server.PENDING_CALLS  # streams whose bytes are kept
        allowed = 2 * held * len(said) + 250 * (
            512 << 10
        )  # glibc gives not all of it back; each connection keeps a buffer
        assert _resident_mb() - before < allowed >> 20


def _resident_mb() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) >> 10


NOTHING = frame(4, 0, 0, b"\x00\x04\x00\x00\x00\x00")  # HTTP/2 settings: the peer may send no bytes of a message


def test_a_stranger_that_does_not_read_is_refused_all_the_same() -> None:
    with attacked(hello_s=0.3) as live, Line(live.address) as line:
        line.send(NOTHING)
        line.call()
        wait_for(live, "silent")
        heard = line.heard(0.5)
        assert b"sl-refused" in heard
        assert b"grpc-status" in heard, "the call is over"


def test_of_a_refused_client_that_does_not_read_nothing_is_kept_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_stream, "LAST_WORDS_S", 0.3)

    def streams() -> int:
        gc.collect()
        return sum(type(one) is server_stream.ServerStream for one in gc.get_objects())

    with attacked() as live, Line(live.address) as line:
        before = streams()
        line.send(NOTHING)
        for _ in range(5):
            line.say(line.call(), prefixed(b"no hello"))
        wait_for(live, "protocol", 5)
        until = time.monotonic() + 10
        while streams() > before:
            assert time.monotonic() < until
            time.sleep(0.1)


@pytest.mark.parametrize(
    "fields", [[("x-bomb", "x" * 9000)], [(f"x-{n}", "") for n in range(300)]], ids=["long", "many"]
)
def test_a_header_bomb_is_refused(fields: list[tuple[str, str]]) -> None:
    with attacked() as live, Line(live.address) as line:
        line.call(fields)
        wait_for(live, "headers")
        assert "server.limits.headers_kb = 8" in said(live, "headers")[0]
        with hostile(live, Access(token="x" * 9000)) as other:
            assert other.hello().code == "headers"


def test_headers_without_end_are_refused_by_us_or_by_grpc() -> None:
    with attacked() as live, Line(live.address) as line:
        with suppress(OSError):  # it may close the connection before all is sent
            line.call([("x-bomb", "x" * 30_000_000)])
        heard = line.heard(1.0)
        assert b"headers_kb" in heard or b"hard limit" in heard


# --- Hellos


def test_a_storm_of_hellos_is_slowed_then_refused_and_touches_no_other_client(tmp_path: Path) -> None:
    """The good ones prove who they are: they do not share a turn with the address of the storm."""
    door = make_credentials("127.0.0.1:0", tokens=write_tokens(tmp_path / "tokens"))
    with attacked(door, lambda name: Access(token=TOKENS[name]), hello_s=0.5, hellos_per_minute=30) as live:
        codes = []
        for _ in range(60):
            with hostile(live, Access(token="wrong-wrong-wrong-wrong")) as stream:
                codes.append(stream.hello().code)
        assert set(codes) == {"identity", "rate"}
        assert 30 <= codes.count("identity") < 60
        assert len(said(live, "rate")) == 1


@pytest.mark.slow
def test_one_identity_has_one_session_and_its_storm_is_slowed(tmp_path: Path) -> None:
    door = make_credentials("127.0.0.1:0", tokens=write_tokens(tmp_path / "tokens"))
    with attacked(door, lambda name: Access(token=TOKENS[name]), hello_s=0.5, hellos_per_minute=30) as live:
        own, answers = Access(token=TOKENS["c2"]), []
        for number in range(45):
            with hostile(live, own) as stream:
                answers.append(stream.hello(life=number, client="c2"))
        assert {type(answer) for answer in answers} == {Greeting, Refusal}
        assert {answer.code for answer in answers if isinstance(answer, Refusal)} == {"rate"}
        assert len([name for name in live.engine.sessions.by_client if name == "c2"]) == 1


def test_a_client_that_is_refused_for_now_tries_again() -> None:
    """Twelve clients come at once through a door for two."""
    config = make_config("parallel", run__clients=12, server__limits__strangers=2, run__rounds=1)
    with serving(config) as live:
        clients = [ClientThread(live.address) for _ in range(12)]
        for client in clients:
            client.join(60)
    assert [client.error for client in clients] == [None] * 12


class SlowDoor(Credentials):
    """It takes the event loop's time."""

    def identity(self, context: grpc.aio.ServicerContext[bytes, bytes]) -> StreamIdentity:
        time.sleep(0.1)
        return super().identity(context)


def test_a_client_that_grpc_refuses_by_itself_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that we have not looked at yet are bounded too."""
    options = grpc_server.options_for

    def one_pending(limits: PeerLimits) -> list[tuple[str, int]]:
        return [(name, 1 if "max_pending_requests" in name else value) for name, value in options(limits)]

    monkeypatch.setattr(grpc_server, "options_for", one_pending)
    with serving(make_config("parallel", run__clients=12, run__rounds=1), SlowDoor()) as live:
        clients = [ClientThread(live.address) for _ in range(12)]
        for client in clients:
            client.join(60)
    assert [client.error for client in clients] == [None] * 12
    assert any("waiting" in client.show.events for client in clients), "nobody was refused"


def test_no_more_sessions_than_allowed() -> None:
    config = {"data__partition": '{ kind = "own" }', "run__clients": 9, "server__limits__sessions": 3}
    with serving(make_config("parallel", **config)) as live, ExitStack() as stack:
        answers = []
        for number in range(5):
            stream = stack.enter_context(hostile(live))
            answers.append(stream.hello(life=number, client=f"e{number}", shard=None))
        assert [type(answer) for answer in answers] == [Greeting] * 3 + [Refusal] * 2
        assert answers[-1].reason == "3 clients are here, server.limits.sessions = 3"


# --- clients that were admitted


def test_a_message_that_does_not_come_nearer_to_its_end_is_refused() -> None:
    """Slow loris: a frame with a byte of it now and then, for ever."""
    with attacked(stall_s=0.6) as live, hostile(live) as evil:
        assert isinstance(evil.hello(), Greeting)
        slot = pb.Tensor(codec="identity", dtype=1, shape=[1000], nbytes=4000)
        named = pb.NamedTensor(part="lower", name="w", tensor=slot)
        evil.say(seq=1, done=pb.Done(parts=["lower"], weights=[named]))
        for seq in range(2, 14):
            evil.say(seq=seq, chunk=b"x")
            time.sleep(0.1)
        assert evil.refusal() == "slow"
        assert "server.limits.stall_s = 0.6 s" in said(live, "slow")[0]


def test_a_client_whose_turn_it_is_and_who_says_nothing_is_refused() -> None:
    """Half of a gRPC message, a byte at a time, is nothing said; who waits for the others may be silent."""
    with attacked(silent_s=2.5) as live, Line(live.address) as line:
        stream = line.call()
        line.say(stream, prefixed(Hello(life=bytes(15) + b"\x01", client="evil", shard=2).to_frame()))
        line.say(stream, prefixed(b"", says=1 << 20))
        for _ in range(12):
            line.say(stream, b"x")
            time.sleep(0.1)
        wait_for(live, "silent")
        assert b"server.limits.silent_s = 2.5 s are over" in line.heard(0.2)
        assert "c0" in live.engine.sessions.by_client


def test_a_client_in_a_wave_that_says_nothing_is_left_out() -> None:
    config = make_config("parallel", run__clients=3, server__limits__silent_s=2.5)
    with serving(config) as live:
        clients = [ClientThread(live.address) for _ in range(2)]
        with hostile(live) as evil:
            assert isinstance(evil.hello(shard=None), Greeting)
            evil.send(_packed(Ready(samples=32, batches=1)))
            assert evil.refusal() == "silent"
            for client in clients:
                client.join(60)
    assert [client.bye.finished for client in clients] == [True, True]


def _packed(message: Ready) -> bytes:
    return pb.ClientFrame(
        seq=1, ack=1, ready=pb.Ready(samples=message.samples, batches=message.batches)
    ).SerializeToString()


@pytest.mark.parametrize(
    ("limit", "chunk"),
    [({"frames_per_s": 400}, 0), pytest.param({"mb_per_s": 0.4}, 1000, marks=pytest.mark.slow)],
    ids=["frames", "bytes"],
)
def test_who_sends_faster_than_allowed_is_slowed_not_buffered(limit: dict[str, float], chunk: int) -> None:
    with attacked(**limit) as live, hostile(live) as evil:
        assert isinstance(evil.hello(), Greeting)
        evil.receive()  # Welcome, which it may acknowledge now
        data = pb.ClientFrame(ack=1, chunk=bytes(chunk)).SerializeToString()
        began = time.monotonic()
        for _ in range(2000):
            evil.send(data)
        most = 0
        while time.monotonic() - began < 1.5:
            most = max(most, live.engine.inbox.backlog)
            time.sleep(0.02)
        stream = live.engine.links._table.by_session[live.engine.sessions.by_client["evil"]].stream
        taken, passed = stream.posted / (len(data) + FRAME_OVERHEAD), time.monotonic() - began
        assert 300 < taken <= 400 * (1.3 + passed)
        assert most < 1 << 20
        assert live.sample("sl_slowed_seconds_total") > 0.3
        assert not [text for text in live.warnings if "evil" in text], "it is slowed, not refused"


@pytest.mark.slow
def test_what_waits_for_the_engine_is_bounded_for_each_stream_and_over_all() -> None:
    """The engine is held up while clients send all they can."""
    with attacked(read_ahead_mb=4, read_ahead_all_mb=6) as live, hostile(live) as one, hostile(live) as other:
        assert isinstance(one.hello(), Greeting)
        assert isinstance(other.hello(life=2, client="evil too", shard=3), Greeting)
        time.sleep(0.2)
        for streams, least, most in (((one,), 4e6, 4e6 + (2 << 20)), ((one, other), 6e6, 6e6 + (3 << 20))):
            live.engine.inbox.put(lambda: time.sleep(1.0))
            for stream in streams:
                for _ in range(12):
                    stream.say(chunk=bytes(1 << 20))
            highest = 0
            for _ in range(30):
                highest = max(highest, live.engine.inbox.backlog)
                time.sleep(0.03)
            assert least < highest < most
            while live.engine.inbox.backlog:
                time.sleep(0.02)
            time.sleep(0.5)


# --- what a client makes of it


def test_a_refusal_is_a_refusal_on_the_clients_side_too() -> None:
    with attacked() as live:
        client = ClientThread(live.address, partial(GrpcStream, access=Access(token="x" * 9000)), name="evil")
        client.join(30)
        assert isinstance(client.error, Refused)
        assert client.error.code == "headers"


@pytest.mark.parametrize("seconds", [1e300, 1e-300])
def test_any_number_that_a_run_may_name_is_one_of_grpcs(seconds: float) -> None:
    limits = PeerLimits(hello_s=seconds, dead_s=seconds, strangers=10**12)
    for name, value in grpc_server.options_for(limits):
        assert 0 <= value < 1 << 31, name
