"""How a client reaches a server: addresses, proxies, TLS, tokens, one gRPC stream of frames, back-off.

It moves frames and knows nothing of training or inference.
"""

from sl_common.lazy_exports import lazy_exports

__getattr__, __all__ = lazy_exports(
    __name__,
    access="Access PLAINTEXT make_access",
    doctor="examine",
    expiry="watch_expiry",
    stream="ClientStream GrpcCarrier StreamBroken no_of",
    tries="Tries",
)
