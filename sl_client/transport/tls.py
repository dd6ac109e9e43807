"""TLS on the client: its files, and the reason in plain words when no connection can be made.

gRPC says only that a server is unavailable. A second handshake by the standard library, on a connection of its own,
finds the cause; nothing but the handshake goes over that connection.
"""

from __future__ import annotations

import contextlib
import ssl
import time
from codecs import BOM_UTF8
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from sl_client.transport.proxy import Proxy, open_tcp
from sl_common.errors import ConfigError
from sl_common.host.files import MAX_KEY_FILE, MAX_PAPER, read_bounded

_TIMEOUT_S = 3.0
_CONFIRM_S = 0.5  # pause before a second handshake: a server that is just going down also closes one connection
_NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME, which Python does not name
_WRONG_NAME = {62, 63, 64}  # X509_V_ERR_HOSTNAME_, EMAIL_ and IP_ADDRESS_MISMATCH
_NOT_YET, _EXPIRED = 9, 10
_PLAINTEXT = {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Certificate:
    """The fields of a certificate that a person wants to know."""

    subject: str
    names: tuple[str, ...]  # hosts that it is valid for
    begins: float  # seconds since 1970
    ends: float

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Certificate:
        """Convert the fields that the module ssl returns for a verified certificate."""
        pairs = [pair for group in fields.get("subject", ()) for pair in group]
        return cls(
            subject=", ".join(value for _key, value in pairs) or "(no name)",
            names=tuple(value for _kind, value in fields.get("subjectAltName", ())),
            begins=float(ssl.cert_time_to_seconds(fields["notBefore"])),
            ends=float(ssl.cert_time_to_seconds(fields["notAfter"])),
        )

    @property
    def days_left(self) -> int:
        """Whole days until it expires; less than 0 when it has expired."""
        return int((self.ends - time.time()) // 86400)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tls:
    """A client's TLS files, in PEM form."""

    ca: Path  # of the authorities to trust
    cert: Path | None = None  # for mutual TLS, this client's own
    key: Path | None = None
    proxy: Proxy | None = None  # for the extra handshakes, the same as for channels

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files as they are now, so that the next stream uses a renewed certificate. Raises ConfigError."""
        self._context()
        return grpc.ssl_channel_credentials(
            root_certificates=_read("--ca", self.ca),
            private_key=_read("--key", self.key) if self.key else None,
            certificate_chain=_read("--cert", self.cert) if self.cert else None,
        )

    def _context(self) -> ssl.SSLContext:
        """Return a context for a handshake like gRPC's. Raises ConfigError that names the option and the file."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.set_alpn_protocols(["h2"])
        _read("--ca", self.ca)
        try:
            context.load_verify_locations(self.ca)
        except ssl.SSLError as error:
            raise ConfigError(f"--ca {self.ca}: no certificate in PEM form") from error
        if self.cert is not None and self.key is not None:
            _load_pair(context, self.cert, self.key)
        return context

    def look(self, server: str) -> tuple[Certificate, str] | None:
        """Return the server's certificate, whatever its names and dates, and the version of TLS.

        None if no handshake succeeds.
        """
        context = self._context()
        context.check_hostname = False
        context.verify_flags = ssl.VerifyFlags(context.verify_flags | _NO_CHECK_TIME)
        with contextlib.suppress(OSError, ValueError), _handshake(server, context, self.proxy) as line:
            return Certificate.of(line.getpeercert() or {}), line.version() or "TLS"
        return None

    def fault(self, server: str) -> str | None:
        """Return why no channel to a server connects, in plain words; None if TLS is not the cause."""
        for pause_s in (0.0, _CONFIRM_S):
            time.sleep(pause_s)
            closed, fault = self._try(server)
            if not closed:
                return fault
        return self._rejection(server)

    def _try(self, server: str) -> tuple[bool, str | None]:
        """Make one handshake.

        Return True if the server then closed the connection, and the fault of a handshake that failed.
        """
        succeeded = False
        try:
            with _handshake(server, self._context(), self.proxy) as line:
                succeeded = True
                return not line.recv(1), None  # a server that accepts us sends first
        except ssl.SSLCertVerificationError as error:
            return False, self._verification_fault(server, error)
        except ssl.SSLError as error:
            return False, _alert(server, error)
        except ConnectionError:
            return succeeded, None
        except (OSError, ValueError):
            return False, None

    def _verification_fault(self, server: str, error: ssl.SSLCertVerificationError) -> str:
        """Return why the server's certificate was not accepted."""
        seen = self.look(server)
        if seen is None:
            return f"the certificate of {server} was not signed by the CA in --ca {self.ca} ({error.verify_message})"
        certificate, _version = seen
        if error.verify_code in _WRONG_NAME:
            host = server.rpartition(":")[0]
            names = ", ".join(certificate.names) or "no host at all"
            return f"the certificate of {server} is for {names}; not for {host!r}"
        if error.verify_code == _EXPIRED:
            return (
                f"the certificate of {server} expired on {_date(certificate.ends)}; today is {_date(time.time())} here"
            )
        if error.verify_code == _NOT_YET:
            begins, now = _date(certificate.begins), _date(time.time())
            return f"the certificate of {server} holds from {begins} on: is this device's clock right? It says {now}"
        return f"the certificate of {server} does not hold: {error.verify_message}"

    def _rejection(self, server: str) -> str:
        """Return why the server closed the connection after it saw this client's certificate, or none."""
        if self.cert is None or self.key is None:
            return f"{server} wants a client certificate: give --cert and --key"
        own = own_certificate(self.cert, self.key)
        if own is None:
            return f"{server} does not take the certificate --cert {self.cert}: it is not made for a client"
        why = "another CA than its --client-ca signed it"
        if own.days_left < 0:
            why = f"it expired on {_date(own.ends)}"
        return f"{server} does not take the certificate --cert {self.cert} ({own.subject}): {why}"


@contextlib.contextmanager
def _handshake(server: str, context: ssl.SSLContext, proxy: Proxy | None) -> Iterator[ssl.SSLSocket]:
    """Open a connection and make the handshake.

    Raises OSError (ssl.SSLError is one), or ValueError for no HOST:PORT.
    """
    host = server.rpartition(":")[0].strip("[]")
    with (
        open_tcp(server, proxy, _TIMEOUT_S) as raw,
        context.wrap_socket(raw, server_hostname=host) as line,
    ):
        yield line


def speaks_tls(server: str, proxy: Proxy | None = None) -> bool:
    """Return True if a server that does not answer in plaintext answers in TLS, whatever its certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with contextlib.suppress(OSError, ValueError), _handshake(server, context, proxy):
        return True
    return False


def own_certificate(cert: Path, key: Path) -> Certificate | None:
    """Read a client's certificate by a handshake in memory, the only public way in Python.

    None if the files cannot be used.
    """
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode, server.verify_mode = False, ssl.CERT_NONE, ssl.CERT_REQUIRED
    try:
        for context in (server, client):
            context.load_cert_chain(cert, key)
        server.load_verify_locations(cert)
        server.verify_flags = ssl.VerifyFlags(server.verify_flags | ssl.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME)
        up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
        server_end, client_end = server.wrap_bio(up, down, server_side=True), client.wrap_bio(down, up)
        for end in (client_end, server_end, client_end, server_end):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
        return Certificate.of(server_end.getpeercert() or {})
    except (OSError, ValueError, KeyError):
        return None


def _alert(server: str, error: ssl.SSLError) -> str | None:
    reason = error.reason or ""
    if reason in _PLAINTEXT:
        return f"{server} speaks plaintext and --ca asks for TLS: start it with --cert and --key"
    return f"{server} broke the TLS handshake off: {reason.lower().replace('_', ' ')}" if "ALERT" in reason else None


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))


def _read(option: str, path: Path) -> bytes:
    try:
        return read_bounded(path, MAX_KEY_FILE if option == "--key" else MAX_PAPER).removeprefix(BOM_UTF8)
    except OSError as error:
        raise ConfigError(f"{option} {path}: {error.strerror or error}") from error


def _load_pair(context: ssl.SSLContext, cert: Path, key: Path) -> None:
    def no_password() -> str:
        raise ConfigError(f"--key {key} is encrypted: a client cannot ask for a passphrase, so it must have none")

    for option, path in (("--cert", cert), ("--key", key)):
        _read(option, path)
    try:
        context.load_cert_chain(cert, key, password=no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(f"--key {key} does not belong to the certificate --cert {cert}") from error
        raise ConfigError(f"--cert {cert}, --key {key}: not a certificate and its key in PEM form") from error
