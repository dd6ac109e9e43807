"""gRPC on asyncio: one handler a stream, which moves bytes between the network and the engine and does nothing else.

Law: no torch, codec or coordinator here. Each stream has an outbox of its own; the engine alone decides which stream carries a
session, and whether who has come may have it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Literal, Protocol

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection

from sl_common.errors import AGAIN, ConfigError, Refused
from sl_common.limits import PeerLimits
from sl_common.pauses import PauseClock
from sl_common.wire import Refusal, probe
from sl_common.wire.endpoint import MAX_GRPC_MESSAGE
from sl_common.wire.greeting import REFUSED_BY
from sl_server.core.identity import StreamIdentity, admit
from sl_server.security.credentials import Credentials, peer_of
from sl_server.transport.limiter import Buckets, PendingStreams, ReadRate
from sl_server.transport.stream import TrainStream

SERVICE_NAME = "sl.v1.SplitLearning"
SMOOTH_S = 0.01  # who is ahead of its rate by less is not worth a pause
HELLO_LOOK_S = 0.5  # between two looks at how long a Hello is awaited
RECHECK_S = 1.0  # after which a changed list of tokens or revoked certificates is noticed
HEADERS = 64 << 10  # bytes; beyond, gRPC refuses some calls by itself, depending on its version
PENDING = 64  # calls, at least, that gRPC may have and we have not looked at: as many as strangers may be here. It refuses more
LIMITS = AGAIN | {"headers"}
MAX_OPTION = (1 << 31) - 1  # gRPC's options are C's; of a time it means without end
FIELD = 32  # what HTTP/2 counts for a header beside its name and value
SERVER_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_GRPC_MESSAGE),
    ("grpc.max_send_message_length", MAX_GRPC_MESSAGE),
    ("grpc.max_metadata_size", HEADERS),
    ("grpc.absolute_max_metadata_size", HEADERS),
    ("grpc.max_concurrent_streams", 128),  # of one connection
    ("grpc.http2.max_frame_size", 1 << 21),  # a chunk in one HTTP/2 frame
    ("grpc.http2.lookahead_bytes", 1 << 22),
    ("grpc.http2.bdp_probe", 0),  # its pings cost more than the window that they find
    ("grpc.so_reuseport", 0),  # a second server on the same port is an error, not a lottery
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),  # or clients that only wait are sent away: too_many_pings
    ("grpc.http2.max_pings_without_data", 0),
)


class Listener(Protocol):
    """What takes the streams of one call: an engine that trains, or one that answers. From any thread; nothing blocks."""

    @property
    def limits(self) -> PeerLimits:
        """What one peer may cost."""
        ...

    @property
    def backlog(self) -> int:
        """Bytes that streams brought and it has not taken yet."""
        ...

    def opened(self, stream: TrainStream, hello: bytes, identity: StreamIdentity) -> None:
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

    def proven(self, stream: TrainStream, identity: StreamIdentity) -> None:
        """What an open stream proves has changed."""
        ...

    def slowed(self, seconds: float) -> None:
        """A stream is not read for so long, since it is too fast."""
        ...


RpcName = Literal["Train", "Infer"]
NOT_HERE = {
    "Train": Refused("over", "this server answers predictions (sl-server serve): ask it with sl-client predict"),
    "Infer": Refused("protocol", "this server trains (sl-server run): when the run is over, sl-server serve answers"),
}


class SplitLearning:
    """The service's handlers."""

    def __init__(self, engine: Listener, door: Credentials) -> None:
        self._engine = engine
        self._door = door
        self._limits = limits = engine.limits
        self._strangers: PendingStreams[TrainStream] = PendingStreams(limits.strangers)
        self._hellos = Buckets(limits.hellos_per_minute / 60, limits.hellos_per_minute)
        self.watcher: asyncio.Task[None] | None = None  # a task that nobody holds may vanish
        self._open: dict[TrainStream, grpc.aio.ServicerContext[bytes, bytes]] = {}  # whose Hello the engine has

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
            reader.cancel()
            if stream.refused is not None:
                await _abort(context, stream.refused)
        finally:
            reader.cancel()
            self._strangers.leave(stream)
            self._open.pop(stream, None)
            self._engine.closed(stream)

    async def _read(self, stream: TrainStream, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        try:
            await self._meet(stream, context)
            limits = self._limits
            pace = ReadRate(limits.frames_per_s, limits.mb_per_s * 1e6, time.monotonic())
            while isinstance(frame := await context.read(), bytes):
                self._engine.came(stream, frame)
                await self._hold(stream, pace.wait(len(frame), time.monotonic()))
        except Refused as error:
            self._refuse(stream, error)
        except (grpc.RpcError, grpc.aio.BaseError, asyncio.InvalidStateError):
            pass  # the stream is broken, or we ended it; the engine keeps the session for its grace period
        finally:
            stream.close()

    async def _meet(self, stream: TrainStream, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        """Until the engine has answered its Hello; nothing is kept of what a stranger sends on. Raises Refused."""
        self._enter(stream, context)
        hello = await self._within(context.read())
        self._strangers.asks(stream)
        if not isinstance(hello, bytes):
            return
        await self._take_turn(stream, self._door.identity(context))
        self._open[stream] = context
        self._engine.opened(stream, hello, self._door.identity(context))  # what it proves now, after its turn has come
        await stream.answered.wait()
        self._strangers.leave(stream)

    def _enter(self, stream: TrainStream, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        metadata = context.invocation_metadata() or ()
        nbytes = sum(len(name) + len(value) + FIELD for name, value in metadata)
        if nbytes > self._limits.headers_kb * 1024:
            raise Refused(
                "headers", f"{nbytes} bytes of headers; server.limits.headers_kb = {self._limits.headers_kb:g}"
            )
        out = self._strangers.enter(stream)
        if out is None:
            return
        error = Refused("crowded", f"more than server.limits.strangers = {self._limits.strangers} have not said Hello")
        if out is stream:
            raise error
        self._refuse(out, error)

    async def _within(self, reading: object) -> object:
        """The time in which this process was stopped does not count: what came meanwhile is still to be read."""
        limit, clock = self._limits.hello_s, PauseClock(time.monotonic(), HELLO_LOOK_S)
        task: asyncio.Future[object] = asyncio.ensure_future(reading)  # type: ignore[call-overload]
        task.add_done_callback(_is_heeded)
        try:
            while (left := limit - clock.read(time.monotonic())) > 0:
                done, _ = await asyncio.wait({task}, timeout=min(left, HELLO_LOOK_S))
                if done:
                    return task.result()
        finally:
            task.cancel()
        raise Refused("silent", f"said nothing within server.limits.hello_s = {limit:g} s")

    async def _take_turn(self, stream: TrainStream, identity: StreamIdentity) -> None:
        """Hellos of one proven client, or of one address, wait for each other."""
        limits = self._limits
        proven = next(iter(identity.bearer or identity.certificate or ()), None)
        key = f"at {stream.peer}" if proven is None else f"client {proven}"
        wait = self._hellos.wait(key, limits.hello_s, time.monotonic())
        if wait is None:
            raise Refused("rate", f"more than server.limits.hellos_per_minute = {limits.hellos_per_minute} streams")
        await asyncio.sleep(wait)

    async def _hold(self, stream: TrainStream, wait: float) -> None:
        """Do not read on while this stream is too fast, or the engine has too much to do: gRPC's windows slow the client."""
        each, together = (1e6 * mb for mb in (self._limits.read_ahead_mb, self._limits.read_ahead_all_mb))
        stream.held = True
        if wait > SMOOTH_S:
            self._engine.slowed(wait)
            await asyncio.sleep(wait)
        while stream.posted - stream.taken > each or self._engine.backlog > together:
            await asyncio.sleep(0.01)
        stream.held = False

    def _refuse(self, stream: TrainStream, error: Refused) -> None:
        """By gRPC's status: it goes out even to a peer that reads nothing, and nothing of its stream is left."""
        self._engine.refused(f"a client at {stream.peer}", error)
        stream.refused = error
        stream.close()

    def recheck(self) -> None:
        """What the open streams showed may prove something else now."""
        for stream, context in list(self._open.items()):
            self._engine.proven(stream, self._door.identity(context))

    async def probe(self, _requests: object, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        """Answer a bounded number of pings, of those who could take part."""
        peer = TrainStream(peer_of(context))
        try:
            self._enter(peer, context)
            await self._take_turn(peer, self._door.identity(context))
            admit("", self._door.identity(context))
            for _ in range(probe.MAX_PINGS):
                ping = await self._within(context.read())
                if not isinstance(ping, bytes):
                    return
                await context.write(probe.answer(ping))
        except Refused as error:
            self._engine.refused(f"a probe from {peer.peer}", error)
            await _abort(context, error)
        except ValueError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        finally:
            self._strangers.leave(peer)


def _is_heeded(task: asyncio.Future[object]) -> None:
    """Or asyncio would tell of a read that failed when nobody waited for it any more."""
    if not task.cancelled():
        task.exception()


async def _abort(context: grpc.aio.ServicerContext[bytes, bytes], error: Refused) -> None:
    code = grpc.StatusCode.RESOURCE_EXHAUSTED if error.code in LIMITS else grpc.StatusCode.UNAUTHENTICATED
    await context.abort(code, error.reason, ((REFUSED_BY, error.code),))


def _options(limits: PeerLimits) -> list[tuple[str, int]]:
    """A connection that does not speak HTTP/2, or TLS, in time, or has no stream, is closed like a stream that says no Hello; one that
    carries nothing is asked after a third of `dead_s` whether it lives, and closed after the rest of it without an answer."""
    hello_ms, quiet_ms, answer_ms = (
        int(min(max(1000 * seconds, 1), MAX_OPTION))
        for seconds in (limits.hello_s, limits.dead_s / 3, 2 * limits.dead_s / 3)
    )
    pending = min(max(PENDING, limits.strangers), MAX_OPTION)  # their bytes fill memory meanwhile
    return [
        *SERVER_OPTIONS,
        ("grpc.server.max_pending_requests", pending),
        ("grpc.server.max_pending_requests_hard_limit", pending),
        ("grpc.server_handshake_timeout_ms", hello_ms),
        ("grpc.max_connection_idle_ms", hello_ms),  # it keeps what it read into, half a megabyte
        ("grpc.keepalive_time_ms", quiet_ms),
        ("grpc.keepalive_timeout_ms", answer_ms),
        ("grpc.http2.ping_timeout_ms", answer_ms),  # what really bounds the wait for an answer; a minute by default
    ]


async def _recheck(server: grpc.aio.Server, door: Credentials, service: SplitLearning) -> None:
    """Whenever there are new files, until the server has stopped."""
    seen = door.version
    while await server.wait_for_termination(RECHECK_S):
        door.renew()
        if door.version != seen:
            seen = door.version
            service.recheck()


async def start(
    engine: Listener, listen: str, door: Credentials | None = None, call: RpcName = "Train"
) -> tuple[grpc.aio.Server, int]:
    """A server that takes streams of one call at `listen` (HOST:PORT), with health and reflection. Raises ConfigError if it is taken.

    Without a door of its own it is open to everybody, in plaintext.
    """
    door = door or Credentials()
    service = SplitLearning(engine, door)
    server = grpc.aio.server(options=_options(engine.limits))
    calls: dict[str, Callable[..., Awaitable[None]]] = {
        name: partial(service.refuse, error) for name, error in NOT_HERE.items()
    }
    calls |= {call: service.talk, "Probe": service.probe}
    handlers = {name: grpc.stream_stream_rpc_method_handler(handler) for name, handler in calls.items()}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, handlers),))
    health = health_aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    for name in ("", SERVICE_NAME):
        await health.set(name, health_pb2.HealthCheckResponse.SERVING)
    reflection.enable_server_reflection(
        (SERVICE_NAME, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME), server
    )
    try:
        port = door.open(server, listen)
    except RuntimeError as error:
        raise ConfigError(f"--listen {listen}: cannot be bound; is another server running there? ({error})") from error
    await server.start()
    if door.watches:
        service.watcher = asyncio.create_task(_recheck(server, door, service))
    return server, port
