"""Both ways of driving a stream behave alike, against a real server in threads of its own."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import grpc
import pytest
from live import ClientThread, serving
from world import make_config

from sl_client.transport import grpc_call as calls
from sl_client.transport.grpc_call import DirectCall, open_call
from sl_client.transport.stream import CHANNEL_OPTIONS
from sl_client.transport.threaded_call import ClientCall, ThreadedCall
from sl_server.simulation.simulation import Simulation

Make = Callable[[str], ClientCall]


class Peer:
    """What the server does with a stream, by the method's name."""

    def __init__(self) -> None:
        self.came: list[int] = []
        self.go_on = threading.Event()

    def echo(self, frames: Iterator[bytes], _context: grpc.ServicerContext) -> Iterator[bytes]:
        yield from frames

    def swallow(self, frames: Iterator[bytes], _context: grpc.ServicerContext) -> Iterator[bytes]:
        for frame in frames:
            self.came.append(len(frame))
        yield b"%d" % len(self.came)

    def hush(self, _frames: Iterator[bytes], _context: grpc.ServicerContext) -> Iterator[bytes]:
        self.go_on.wait(20)
        yield b""

    def refuse(self, _frames: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        context.set_trailing_metadata((("why", "so"),))
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too much of it — ü")
        yield b""


@pytest.fixture
def peer() -> Iterator[tuple[Peer, str]]:
    peer, executor = Peer(), ThreadPoolExecutor(4)
    server = grpc.server(executor, options=CHANNEL_OPTIONS)
    handlers = {
        name: grpc.stream_stream_rpc_method_handler(getattr(peer, name))
        for name in ("echo", "swallow", "hush", "refuse")
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("peer", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield peer, f"127.0.0.1:{port}"
    peer.go_on.set()
    server.stop(0).wait()
    executor.shutdown()


@pytest.fixture(params=[DirectCall, ThreadedCall])
def make(request: pytest.FixtureRequest, peer: tuple[Peer, str]) -> Iterator[Make]:
    channel = grpc.insecure_channel(peer[1], options=CHANNEL_OPTIONS)
    made: list[ClientCall] = []

    def make(method: str) -> ClientCall:
        made.append(request.param(channel, f"/peer/{method}", (("who", "me"),)))
        return made[-1]

    yield make
    for call in made:
        call.close()
    channel.close()


def test_the_direct_way_is_taken_where_grpcio_has_it(peer: tuple[Peer, str]) -> None:
    with grpc.insecure_channel(peer[1]) as channel:
        call = open_call(channel, "/peer/echo", ())
        assert type(call) is DirectCall
        call.close()


def test_frames_come_in_order_and_whole(make: Make) -> None:
    """Whatever is sent before something is taken; the sizes are none, some, and more than gRPC's windows."""
    rng = random.Random(5)
    call, sent, taken = make("echo"), [], 0
    for _ in range(300):
        if taken == len(sent) or rng.random() < 0.55:
            sent.append(rng.randbytes(rng.choice((0, 1, 100, 70_000, 1_500_000))))
            call.send(sent[-1])
        else:
            assert next(call) == sent[taken]
            taken += 1
    call.end()
    assert [next(call) for _ in sent[taken:]] == sent[taken:]
    with pytest.raises(StopIteration):
        next(call)
    with pytest.raises(StopIteration):
        next(call)


def test_what_is_sent_goes_out_though_nobody_takes_anything(make: Make, peer: tuple[Peer, str]) -> None:
    """A client that learns alone sends one batch after the other and computes between."""
    call = make("swallow")
    for _ in range(40):
        call.send(bytes(1 << 20))
    until = time.monotonic() + 20
    while len(peer[0].came) < 40:
        assert time.monotonic() < until, f"{len(peer[0].came)} of 40 frames came"
        time.sleep(0.01)
    call.end()
    assert next(call) == b"40"


def test_another_thread_can_break_off(make: Make) -> None:
    call = make("hush")
    call.send(b"?")
    timer = threading.Timer(0.3, call.cancel)
    timer.start()
    with pytest.raises(grpc.RpcError) as error:
        next(call)
    assert error.value.code() is grpc.StatusCode.CANCELLED
    timer.join()
    call.send(b"lost")
    call.end()
    call.cancel()


def test_a_refusal_says_why(make: Make) -> None:
    call = make("refuse")
    with pytest.raises(grpc.RpcError) as error:
        next(call)
    assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.value.details() == "too much of it — ü"
    assert ("why", "so") in [tuple(pair) for pair in error.value.trailing_metadata()]


@pytest.mark.parametrize("kind", [DirectCall, ThreadedCall])
def test_nobody_there(kind: type[ClientCall]) -> None:
    with grpc.insecure_channel("127.0.0.1:1") as channel:
        call = kind(channel, "/peer/echo", ())
        call.send(b"?")
        with pytest.raises(grpc.RpcError) as error:
            next(call)
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE
        call.close()


def test_closing_leaves_no_thread(peer: tuple[Peer, str]) -> None:
    """Also in the middle of frames that the other side does not read."""
    with grpc.insecure_channel(peer[1], options=CHANNEL_OPTIONS) as channel:
        call = DirectCall(channel, "/peer/hush", ())
        for _ in range(20):
            call.send(bytes(1 << 20))
        names = [thread.name for thread in threading.enumerate()]
        assert "sending" in names
        began = time.monotonic()
        call.close()
        assert time.monotonic() - began < 5
        until = time.monotonic() + 5
        while "sending" in [thread.name for thread in threading.enumerate()]:
            assert time.monotonic() < until
            time.sleep(0.01)


@pytest.mark.parametrize("lacks", ["everything", "PropagationConstants", "SendMessageOperation"])
def test_a_grpcio_with_other_names_trains_the_public_way(monkeypatch: pytest.MonkeyPatch, lacks: str) -> None:
    names = {} if lacks == "everything" else {k: v for k, v in vars(calls.cygrpc).items() if k != lacks}
    monkeypatch.setattr(calls, "cygrpc", SimpleNamespace(**names))
    spun: list[ThreadedCall] = []
    began = ThreadedCall.__init__
    monkeypatch.setattr(ThreadedCall, "__init__", lambda self, *a: (spun.append(self), began(self, *a))[1])
    config = make_config("splitfed_v1", run__clients=1)
    with serving(config) as live:
        client = ClientThread(live.address, name="c0")
        client.join(60)
    simulation = Simulation(config)
    simulation.run()
    assert client.error is None
    assert len(spun) == 1
    assert live.coordinator.weights_sha256() == simulation.coordinator.weights_sha256()
