"""gRPC's handlers on asyncio, a task for each stream: they move frames between the network and an inbox, no more.

Law: no torch, codec or coordinator here. Each stream has an outbox of its own; the loop behind the inbox alone decides
which stream carries a session, and whether its client may have it.
"""

from __future__ import annotations

import asyncio
import time

import grpc

from sl_common.errors import AGAIN, Refused
from sl_common.wire import Refusal, probe
from sl_common.wire.greeting import REFUSED_BY
from sl_server.core.identity import admit
from sl_server.security.credentials import Credentials, peer_of
from sl_server.transport.admission import Admission
from sl_server.transport.inbox import Inbox
from sl_server.transport.limiter import ReadRate
from sl_server.transport.server_stream import ServerStream

SMOOTH_S = 0.01  # a stream that is ahead of its rate by less is not paused
BACKLOG_LOOK_S = 0.01  # between two looks whether the loop has caught up
LIMIT_CODES = AGAIN | {"headers"}


class SplitLearning:
    """The handlers of the service."""

    def __init__(self, inbox: Inbox, door: Credentials) -> None:
        self._inbox = inbox
        self._door = door
        self._limits = inbox.limits
        self._admission = Admission(inbox.limits, self._refuse)
        self.watch: asyncio.Task[None] | None = None  # held here, since asyncio holds no reference to a task
        # Streams whose Hello the loop has.
        self._open: dict[ServerStream, grpc.aio.ServicerContext[bytes, bytes]] = {}

    async def refuse(self, error: Refused, _requests: object, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        """Refuse a stream of the call that this server does not answer."""
        self._inbox.refused(f"a client at {peer_of(context)}", error)
        await context.write(Refusal(code=error.code, reason=error.reason).to_frame())

    async def talk(self, _requests: object, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        """Handle one stream of one client, from its Hello to its end."""
        stream = ServerStream(peer_of(context))
        reader = asyncio.create_task(self._read(stream, context))
        try:
            await stream.write_to(context)
            reader.cancel()
            if stream.refused is not None:
                await _abort(context, stream.refused)
        finally:
            reader.cancel()
            self._admission.leave(stream)
            self._open.pop(stream, None)
            self._inbox.closed(stream)

    async def probe(self, _requests: object, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        """Answer a bounded number of pings of a client that could take part."""
        peer = ServerStream(peer_of(context))
        try:
            self._admission.enter(peer, context)
            await self._admission.take_turn(peer, self._door.identity(context))
            admit("", self._door.identity(context))
            for _ in range(probe.MAX_PINGS):
                ping = await self._admission.within(context.read())
                if not isinstance(ping, bytes):
                    return
                await context.write(probe.answer(ping))
        except Refused as error:
            self._inbox.refused(f"a probe from {peer.peer}", error)
            await _abort(context, error)
        except ValueError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        finally:
            self._admission.leave(peer)

    def recheck(self) -> None:
        """Report what each open stream proves now."""
        for stream, context in list(self._open.items()):
            self._inbox.identity_changed(stream, self._door.identity(context))

    async def _read(self, stream: ServerStream, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        try:
            await self._meet(stream, context)
            limits = self._limits
            pace = ReadRate(limits.frames_per_s, limits.mb_per_s * 1e6, time.monotonic())
            while isinstance(frame := await context.read(), bytes):
                self._inbox.received(stream, frame)
                await self._hold(stream, pace.wait(len(frame), time.monotonic()))
        except Refused as error:
            self._refuse(stream, error)
        except (grpc.RpcError, grpc.aio.BaseError, asyncio.InvalidStateError):
            pass  # the stream is broken, or we ended it; the loop keeps the session for its grace period
        finally:
            stream.close()

    async def _meet(self, stream: ServerStream, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        """Hand over the Hello and wait for its answer; meanwhile the stream is not read. Raises Refused."""
        self._admission.enter(stream, context)
        hello = await self._admission.within(context.read())
        self._admission.spoke(stream)
        if not isinstance(hello, bytes):
            return
        await self._admission.take_turn(stream, self._door.identity(context))
        self._open[stream] = context
        # The stream may prove something else now than before it waited for its turn.
        self._inbox.opened(stream, hello, self._door.identity(context))
        await stream.answered.wait()
        self._admission.leave(stream)

    async def _hold(self, stream: ServerStream, wait: float) -> None:
        """Pause reading while the stream is too fast or the inbox too full: gRPC's windows slow the client down."""
        each, together = (1e6 * mb for mb in (self._limits.read_ahead_mb, self._limits.read_ahead_all_mb))
        stream.held = True
        if wait > SMOOTH_S:
            self._inbox.paused(wait)
            await asyncio.sleep(wait)
        while stream.posted - stream.taken > each or self._inbox.backlog > together:
            await asyncio.sleep(BACKLOG_LOOK_S)
        stream.held = False

    def _refuse(self, stream: ServerStream, error: Refused) -> None:
        """End a stream with a gRPC status, which reaches even a peer that reads nothing, and keep nothing of it."""
        self._inbox.refused(f"a client at {stream.peer}", error)
        stream.refused = error
        stream.close()


async def _abort(context: grpc.aio.ServicerContext[bytes, bytes], error: Refused) -> None:
    code = grpc.StatusCode.RESOURCE_EXHAUSTED if error.code in LIMIT_CODES else grpc.StatusCode.UNAUTHENTICATED
    await context.abort(code, error.reason, ((REFUSED_BY, error.code),))
