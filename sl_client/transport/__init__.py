"""A client's way to a server: proxies, TLS, tokens, gRPC streams, sessions, and the tries to reach a lost server.

It moves messages and knows nothing of training or inference.
"""

from sl_common.lazy_exports import lazy_exports

__getattr__, __all__ = lazy_exports(
    __name__,
    access="Access PLAINTEXT make_access",
    connection="Connection Forgotten Interrupted LEAVE_S",
    doctor="examine",
    expiry="watch_expiry",
    stream="ClientStream GrpcStream StreamBroken",
)
