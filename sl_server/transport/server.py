"""The start of gRPC's server: options, handlers, health and reflection, and the watch on tokens and revocations."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Literal

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection

from sl_common.errors import ConfigError, Refused
from sl_common.limits import PeerLimits
from sl_common.wire.frame import MAX_GRPC_MESSAGE
from sl_server.security.credentials import Credentials
from sl_server.transport.inbox import Inbox
from sl_server.transport.service import SplitLearning

SERVICE_NAME = "sl.v1.SplitLearning"
RECHECK_S = 1.0  # after which a changed list of tokens or revoked certificates is noticed
MAX_HEADER_BYTES = 64 << 10  # beyond, gRPC refuses some calls by itself, depending on its version
PENDING_CALLS = 64  # least number of calls that gRPC may hold before a handler sees them; it refuses more
MAX_OPTION = (1 << 31) - 1  # gRPC's options are C integers; as a time this means without end
SERVER_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_GRPC_MESSAGE),
    ("grpc.max_send_message_length", MAX_GRPC_MESSAGE),
    ("grpc.max_metadata_size", MAX_HEADER_BYTES),
    ("grpc.absolute_max_metadata_size", MAX_HEADER_BYTES),
    ("grpc.max_concurrent_streams", 128),  # of one connection
    ("grpc.http2.max_frame_size", 1 << 21),  # a chunk in one HTTP/2 frame
    ("grpc.http2.lookahead_bytes", 1 << 22),
    ("grpc.http2.bdp_probe", 0),  # its pings cost more than the window that they find
    ("grpc.so_reuseport", 0),  # a second server on the same port is an error, not a lottery
    ("grpc.keepalive_permit_without_calls", 1),
    # Otherwise clients that only wait are disconnected with too_many_pings.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
)
RpcName = Literal["Train", "Infer"]
NOT_SERVED = {
    "Train": Refused("over", "this server answers predictions (sl-server serve): ask it with sl-client predict"),
    "Infer": Refused("protocol", "this server trains (sl-server run): when the run is over, sl-server serve answers"),
}


async def start(
    inbox: Inbox, listen: str, door: Credentials | None = None, call: RpcName = "Train"
) -> tuple[grpc.aio.Server, int]:
    """Start a server that takes streams of one call at `listen` (HOST:PORT). Return it and its port.

    Without `door` it is open to everybody, in plaintext. Raises ConfigError if the port is taken.
    """
    door = door or Credentials()
    service = SplitLearning(inbox, door)
    server = grpc.aio.server(options=options_for(inbox.limits))
    calls: dict[str, Callable[..., Awaitable[None]]] = {
        name: partial(service.refuse, error) for name, error in NOT_SERVED.items()
    }
    calls |= {call: service.talk, "Probe": service.probe}
    handlers = {name: grpc.stream_stream_rpc_method_handler(handler) for name, handler in calls.items()}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, handlers),))
    await _add_health_and_reflection(server)
    try:
        port = door.open(server, listen)
    except RuntimeError as error:
        raise ConfigError(f"--listen {listen}: cannot be bound; is another server running there? ({error})") from error
    await server.start()
    if door.watches:
        service.watch = asyncio.create_task(_recheck(server, door, service))
    return server, port


async def _add_health_and_reflection(server: grpc.aio.Server) -> None:
    health = health_aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    for name in ("", SERVICE_NAME):
        await health.set(name, health_pb2.HealthCheckResponse.SERVING)
    reflection.enable_server_reflection(
        (SERVICE_NAME, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME), server
    )


async def _recheck(server: grpc.aio.Server, door: Credentials, service: SplitLearning) -> None:
    """Read changed files again and recheck the open streams, until the server has stopped."""
    seen = door.version
    while await server.wait_for_termination(RECHECK_S):
        door.renew()
        if door.version != seen:
            seen = door.version
            service.recheck()


def options_for(limits: PeerLimits) -> list[tuple[str, int]]:
    """Return gRPC's options for these limits.

    A connection that does not finish its handshake in time, or has no stream, is closed after `hello_s`, as a stream
    without a Hello is. A silent connection is pinged after a third of `dead_s`, and closed if the rest of it brings no
    answer.
    """
    hello_ms, quiet_ms, answer_ms = (
        int(min(max(1000 * seconds, 1), MAX_OPTION))
        for seconds in (limits.hello_s, limits.dead_s / 3, 2 * limits.dead_s / 3)
    )
    pending = min(max(PENDING_CALLS, limits.strangers), MAX_OPTION)  # their bytes fill memory meanwhile
    return [
        *SERVER_OPTIONS,
        ("grpc.server.max_pending_requests", pending),
        ("grpc.server.max_pending_requests_hard_limit", pending),
        ("grpc.server_handshake_timeout_ms", hello_ms),
        ("grpc.max_connection_idle_ms", hello_ms),  # an idle connection keeps its read buffer, half a megabyte
        ("grpc.keepalive_time_ms", quiet_ms),
        ("grpc.keepalive_timeout_ms", answer_ms),
        ("grpc.http2.ping_timeout_ms", answer_ms),  # the real bound on the wait for an answer; by default a minute
    ]
