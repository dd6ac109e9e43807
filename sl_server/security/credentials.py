"""Access for clients: plaintext or TLS, and the identity that a stream proves. Knows gRPC; decides nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

import grpc

from sl_common.errors import ConfigError
from sl_common.exits import is_loopback
from sl_server.core.identity import StreamIdentity
from sl_server.security.revocation import RevocationList
from sl_server.security.tls import CertificateFiles, Certificates
from sl_server.security.tokens import Tokens


class Credentials:
    """Certificates, tokens and revocation lists of a server. With certificates the server accepts TLS only."""

    def __init__(
        self,
        certificates: Certificates | None = None,
        tokens: Tokens | None = None,
        revoked: RevocationList | None = None,
    ) -> None:
        self.certificates = certificates
        self.tokens = tokens
        self.revoked = revoked

    @property
    def says(self) -> str:
        """Protection of the connection, as text for people."""
        tls = "plaintext" if self.certificates is None else "TLS"
        mutual = self.certificates is not None and self.certificates.files.client_ca is not None
        asked = [what for what, asks in (("certificate", mutual), ("token", self.tokens is not None)) if asks]
        return tls + (f", clients show a {' and a '.join(asked)}" if asked else "")

    def attach(self, warn: Callable[[str], None]) -> None:
        """Set the function that receives warnings from now on."""
        for kept in (self.certificates, self.tokens, self.revoked):
            if kept is not None:
                kept.attach(warn)

    @property
    def watches(self) -> bool:
        """True if the identity that an open stream proved may change later."""
        return self.tokens is not None or self.revoked is not None

    def renew(self) -> None:
        """Read tokens and revocation lists again if their files have changed."""
        for kept in (self.tokens, self.revoked):
            if kept is not None:
                kept.renew()

    @property
    def version(self) -> tuple[int, ...]:
        """A value that changes whenever tokens or revocation lists do."""
        return tuple(kept.version for kept in (self.tokens, self.revoked) if kept is not None)

    def open(self, server: grpc.aio.Server, listen: str) -> int:
        """Bind the address and return the port. Raises RuntimeError if it is taken."""
        if self.certificates is None:
            return int(server.add_insecure_port(listen))
        return int(server.add_secure_port(listen, self.certificates.credentials()))

    def identity(self, context: grpc.aio.ServicerContext[bytes, bytes]) -> StreamIdentity:
        """Return the identity that a call's connection and metadata prove."""
        certificate, bearer, revoked = None, None, False
        if self.certificates is not None and self.certificates.files.client_ca is not None:
            shown = context.auth_context()
            values = (value for key in ("x509_common_name", "peer_dns", "peer_uri") for value in shown.get(key, ()))
            certificate = tuple(dict.fromkeys(value.decode(errors="replace") for value in values))
            if self.revoked is not None:
                revoked = any(self.revoked.holds(pem) for pem in shown.get("x509_pem_cert", (b"",)))
        if self.tokens is not None:
            metadata = dict(context.invocation_metadata() or ())
            bearer = self.tokens.owner(str(metadata.get("authorization", "")))
        return StreamIdentity(certificate=certificate, bearer=bearer, revoked=revoked)


def peer_of(context: grpc.aio.ServicerContext[bytes, bytes]) -> str:
    """Return a call's origin without its port: `ipv4:192.0.2.1:4711` is 192.0.2.1."""
    _scheme, _, address = unquote(context.peer()).partition(":")
    return (address.rpartition(":")[0] or address).strip("[]")


def make_credentials(
    listen: str,
    *,
    cert: Path | None = None,
    key: Path | None = None,
    client_ca: Path | None = None,
    revoked: Path | None = None,
    tokens: Path | None = None,
    insecure: bool = False,
) -> Credentials:
    """Make credentials from command-line options. Raises ConfigError for unusable files and options that exclude each
    other."""
    if (cert is None) != (key is None):
        raise ConfigError("--cert and --key belong together: the certificate and its private key")
    if client_ca is not None and cert is None:
        raise ConfigError("--client-ca asks clients for certificates, which needs TLS: add --cert and --key")
    if revoked is not None and client_ca is None:
        raise ConfigError("--revoked lists certificates of clients, which only --client-ca asks for: add it")
    if cert is not None and insecure:
        raise ConfigError("--insecure asks for plaintext and --cert for TLS: leave one of them out")
    if cert is None and not is_loopback(listen):
        if tokens is not None:
            raise ConfigError(
                f"--tokens on --listen {listen} would be sent in plaintext: add TLS with --cert and --key "
                "(sl-server certs makes them)"
            )
        if not insecure:
            raise ConfigError(
                f"--listen {listen} is not on this machine alone: add TLS with --cert and --key "
                "(sl-server certs makes them), or --insecure if you mean plaintext"
            )
    certificates = None
    if cert is not None and key is not None:
        certificates = Certificates(CertificateFiles(cert=cert, key=key, client_ca=client_ca))
    listed = None if revoked is None or client_ca is None else RevocationList(revoked, client_ca)
    return Credentials(certificates, None if tokens is None else Tokens(tokens), listed)
