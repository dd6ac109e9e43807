"""health.py server|client : a container's health check; exit code 0 if it is well, else 1 and why.

A server is well if it answers grpc.health.v1 on the port that it listens on. A client is well while it has a connection to its
server, or to the proxy on the way there: /proc tells, at no cost to either.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

TIMEOUT_S = 4.0
ESTABLISHED = "01"
DIRECT = (("grpc.enable_http_proxy", 0), ("grpc.address_http_proxy_enabled_addresses", ""))  # it is this container


def server() -> str | None:
    """What is wrong, if anything."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    address = "localhost:" + os.environ["SL_LISTEN"].rpartition(":")[2]
    if os.environ.get("SL_CERT"):
        ca, key, cert = (Path(os.environ[name]).read_bytes() for name in ("HEALTH_CA", "HEALTH_KEY", "HEALTH_CERT"))
        channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(ca, key, cert), DIRECT)
    else:
        channel = grpc.insecure_channel(address, DIRECT)
    with channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            return f"{address}: {error.code().name.lower()}: {error.details()}"
    serving = health_pb2.HealthCheckResponse.SERVING
    return None if answer.status == serving else f"{address}: status {answer.status}, not {serving}"


def client() -> str | None:
    """What is wrong, if anything."""
    from sl_client.transport.proxy import UnusableProxy, find_proxy

    port, proxy = int(os.environ["SL_SERVER"].rpartition(":")[2]), None
    with contextlib.suppress(UnusableProxy):  # which the client goes around
        proxy = find_proxy(os.environ["SL_SERVER"], os.environ)
    port = port if proxy is None else proxy.port
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            rows = [line.split() for line in Path(table).read_text(encoding="utf-8").splitlines()[1:]]
        except FileNotFoundError:  # a kernel without IPv6
            continue
        if any(int(row[2].rpartition(":")[2], 16) == port and row[3] == ESTABLISHED for row in rows):
            return None
    return f"no connection to {os.environ['SL_SERVER']}"


if __name__ == "__main__":
    wrong = {"server": server, "client": client}[sys.argv[1]]()
    sys.exit(wrong)
