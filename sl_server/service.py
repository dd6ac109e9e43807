"""gRPC on asyncio: one handler a stream, which moves bytes between the network and the engine and does nothing else.

Law: no torch, codec or coordinator here. Each stream has an outbox of its own; the engine alone decides which stream carries a
session, and whether who has come may have it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Literal, Protocol

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection

from sl_common.errors import ConfigError, Refused
from sl_common.wire import Refusal, probe
from sl_common.wire.endpoint import MAX_CHUNK
from sl_server.door import Door, peer_of
from sl_server.identity import Identity, admit

SERVICE = "sl.v1.SplitLearning"
MAX_MESSAGE = 2 * MAX_CHUNK
HELLO_TIMEOUT_S = 10.0
READ_AHEAD = 64 << 20  # bytes of one stream that may wait for the engine before we stop reading
READ_AHEAD_ALL = 1 << 30  # of all streams together
OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", MAX_MESSAGE),
    ("grpc.http2.max_frame_size", 1 << 21),  # a chunk in one HTTP/2 frame
    ("grpc.http2.lookahead_bytes", 1 << 22),
    ("grpc.http2.bdp_probe", 0),  # its pings cost more than the window that they find
    ("grpc.so_reuseport", 0),  # a second server on the same port is an error, not a lottery
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.ping_timeout_ms", 20_000),  # what really bounds the wait for an answer; a minute by default
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),  # or clients that only wait are sent away: too_many_pings
    ("grpc.http2.max_pings_without_data", 0),
)


class TrainStream:
    """An open stream's outbox: the engine's thread puts frames in, the event loop writes them."""

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self.posted = 0
        self.taken = 0
        self._loop = asyncio.get_running_loop()
        self._frames: deque[bytes] = deque()
        self._wake = asyncio.Event()
        self.answered = asyncio.Event()  # the engine has said something: its yes or no to the Hello
        self._closing = False

    def send(self, frames: Sequence[bytes]) -> None:
        """From any thread."""
        self._frames.extend(frames)
        self._ring()

    def close(self) -> None:
        """From any thread."""
        self._closing = True
        self._ring()

    def _ring(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake.set)

    async def write_to(self, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        """Write until the stream is closed and its outbox empty."""
        while True:
            while self._frames:
                await context.write(self._frames.popleft())
                self.answered.set()
            if self._closing:
                return
            self._wake.clear()
            if not self._frames and not self._closing:
                await self._wake.wait()


class Listener(Protocol):
    """What takes the streams of one call: an engine that trains, or one that answers. From any thread; nothing blocks."""

    @property
    def backlog(self) -> int:
        """Bytes that streams brought and it has not taken yet."""
        ...

    def opened(self, stream: TrainStream, hello: bytes, identity: Identity) -> None:
        """A stream brought its first frame; `identity` is what its transport proves."""
        ...

    def came(self, stream: TrainStream, frame: bytes) -> None:
        """A stream brought a frame."""
        ...

    def closed(self, stream: TrainStream) -> None:
        """A stream is gone."""
        ...

    def refused(self, who: str, error: Refused) -> None:
        """Somebody was sent away before there was a session."""
        ...


Call = Literal["Train", "Infer"]
NOT_HERE = {
    "Train": Refused("over", "this server answers predictions (sl-server serve): ask it with sl-client predict"),
    "Infer": Refused("protocol", "this server trains (sl-server run): when the run is over, sl-server serve answers"),
}


class SplitLearning:
    """The service's handlers."""

    def __init__(self, engine: Listener, door: Door) -> None:
        self._engine = engine
        self._door = door

    async def refuse(self, error: Refused, _requests: object, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        """A stream of the call that this server does not answer."""
        self._engine.refused(f"a client at {peer_of(context)}", error)
        await context.write(Refusal(code=error.code, reason=error.reason).to_frame())

    async def talk(self, _requests: object, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        """One stream of one client, from Hello to its end."""
        stream = TrainStream(peer_of(context))
        reader = asyncio.create_task(self._read(stream, context))
        try:
            await stream.write_to(context)
        finally:
            reader.cancel()
            self._engine.closed(stream)

    async def _read(self, stream: TrainStream, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        try:
            hello = await asyncio.wait_for(context.read(), HELLO_TIMEOUT_S)
            if isinstance(hello, bytes):
                self._engine.opened(stream, hello, self._door.identity(context))
                await stream.answered.wait()  # nothing is kept of what a stranger sends on
                while isinstance(frame := await context.read(), bytes):
                    self._engine.came(stream, frame)
                    while stream.posted - stream.taken > READ_AHEAD or self._engine.backlog > READ_AHEAD_ALL:
                        await asyncio.sleep(0.01)
        except (TimeoutError, grpc.RpcError, grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass  # the stream is broken or mute; the engine keeps the session for its grace period
        finally:
            stream.close()

    async def probe(self, _requests: object, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        """Answer a bounded number of pings, of those who could take part."""
        try:
            admit("", self._door.identity(context))
        except Refused as error:
            self._engine.refused(f"a probe from {peer_of(context)}", error)
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, error.reason)
        for _ in range(probe.MAX_PINGS):
            ping = await context.read()
            if not isinstance(ping, bytes):
                return
            try:
                await context.write(probe.answer(ping))
            except ValueError as error:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))


async def start(
    engine: Listener, listen: str, door: Door | None = None, call: Call = "Train"
) -> tuple[grpc.aio.Server, int]:
    """A server that takes streams of one call at `listen` (HOST:PORT), with health and reflection. Raises ConfigError if it is taken.

    Without a door of its own it is open to everybody, in plaintext.
    """
    door = door or Door()
    service = SplitLearning(engine, door)
    server = grpc.aio.server(options=OPTIONS)
    calls: dict[str, Callable[..., Awaitable[None]]] = {
        name: partial(service.refuse, error) for name, error in NOT_HERE.items()
    }
    calls |= {call: service.talk, "Probe": service.probe}
    handlers = {name: grpc.stream_stream_rpc_method_handler(handler) for name, handler in calls.items()}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    health = health_aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    for name in ("", SERVICE):
        await health.set(name, health_pb2.HealthCheckResponse.SERVING)
    reflection.enable_server_reflection(
        (SERVICE, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME), server
    )
    try:
        port = door.open(server, listen)
    except RuntimeError as error:
        raise ConfigError(f"--listen {listen}: cannot be bound; is another server running there? ({error})") from error
    await server.start()
    return server, port
