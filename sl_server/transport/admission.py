"""Limits on streams before their Hello is answered: their number, silence and headers, and how often a client comes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import grpc

from sl_common.errors import Refused
from sl_common.limits import PeerLimits
from sl_common.pauses import PauseClock
from sl_server.core.identity import StreamIdentity
from sl_server.transport.limiter import Buckets, PendingStreams
from sl_server.transport.server_stream import ServerStream

HELLO_LOOK_S = 0.5  # between two looks at how long a Hello is awaited
FIELD_OVERHEAD = 32  # bytes that HTTP/2 counts for a header besides its name and value


class Admission:
    """The limits of one server on streams whose Hello was not answered yet."""

    def __init__(self, limits: PeerLimits, refuse: Callable[[ServerStream, Refused], None]) -> None:
        """`refuse` ends a stream that must make room for a newer one."""
        self._limits = limits
        self._refuse = refuse
        self._pending: PendingStreams[ServerStream] = PendingStreams(limits.strangers)
        self._hellos = Buckets(limits.hellos_per_minute / 60, limits.hellos_per_minute)

    def enter(self, stream: ServerStream, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        """Count a new stream as pending; the one that was silent longest may have to make room. Raises Refused."""
        metadata = context.invocation_metadata() or ()
        nbytes = sum(len(name) + len(value) + FIELD_OVERHEAD for name, value in metadata)
        if nbytes > self._limits.headers_kb * 1024:
            raise Refused(
                "headers", f"{nbytes} bytes of headers; server.limits.headers_kb = {self._limits.headers_kb:g}"
            )
        out = self._pending.enter(stream)
        if out is None:
            return
        error = Refused("crowded", f"more than server.limits.strangers = {self._limits.strangers} have not said Hello")
        if out is stream:
            raise error
        self._refuse(out, error)

    def spoke(self, stream: ServerStream) -> None:
        """Record that a pending stream has sent its Hello: it does not make room for others any more."""
        self._pending.spoke(stream)

    def leave(self, stream: ServerStream) -> None:
        """Forget a stream that was admitted or has ended."""
        self._pending.leave(stream)

    async def within(self, reading: object) -> object:
        """Return the result of `reading`. Raises Refused after `hello_s`; pauses of this process do not count."""
        limit, clock = self._limits.hello_s, PauseClock(time.monotonic(), HELLO_LOOK_S)
        task: asyncio.Future[object] = asyncio.ensure_future(reading)  # type: ignore[call-overload]
        task.add_done_callback(_retrieve_error)
        try:
            while (left := limit - clock.read(time.monotonic())) > 0:
                done, _ = await asyncio.wait({task}, timeout=min(left, HELLO_LOOK_S))
                if done:
                    return task.result()
        finally:
            task.cancel()
        raise Refused("silent", f"said nothing within server.limits.hello_s = {limit:g} s")

    async def take_turn(self, stream: ServerStream, identity: StreamIdentity) -> None:
        """Wait until one more Hello of this proven client, or of this address, is within the rate. Raises Refused."""
        limits = self._limits
        proven = next(iter(identity.bearer or identity.certificate or ()), None)
        key = f"at {stream.peer}" if proven is None else f"client {proven}"
        wait = self._hellos.wait(key, limits.hello_s, time.monotonic())
        if wait is None:
            raise Refused("rate", f"more than server.limits.hellos_per_minute = {limits.hellos_per_minute} streams")
        await asyncio.sleep(wait)


def _retrieve_error(task: asyncio.Future[object]) -> None:
    """Retrieve the error of a read that nobody waits for any more; otherwise asyncio would log it."""
    if not task.cancelled():
        task.exception()
