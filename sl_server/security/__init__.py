"""Identity: certificates, tokens, revocation, and what a stream proves about its peer.

This folder finds out what is proved; `sl_server.core` decides who may do what.
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
