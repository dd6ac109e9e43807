"""Identity: certificates, tokens, revocation, and what a stream proves of its peer.

It finds out what is proved; who may do what is decided in `sl_server.core`.
"""

from sl_common.lazy_exports import lazy_exports

__getattr__, __all__ = lazy_exports(
    __name__,
    certificates="CertificateFolder WrittenFile",
    credentials="Credentials make_credentials peer_of",
    expiry="Expiry expose",
    handshakes="",
    renewal="",
)
