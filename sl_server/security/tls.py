"""The server's certificate: read from files, checked, and read again when they change, without a restart."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc

from sl_common.errors import ConfigError
from sl_common.host.certificates import ends_of
from sl_common.host.files import MAX_KEY_FILE
from sl_server.security.watched_files import Watched, caution, read_file


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedCertificate:
    """A certificate in gRPC's form, and the end of the first certificate of each file, in seconds since 1970."""

    shown: grpc.ServerCertificateConfiguration
    ends: dict[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class CertificateFiles:
    """Paths of files in PEM form. With `client_ca`, clients must have a certificate that it signed."""

    cert: Path
    key: Path
    client_ca: Path | None = None

    @property
    def paths(self) -> list[Path]:
        """All paths that are set."""
        return [path for path in (self.cert, self.key, self.client_ca) if path is not None]

    def read(self) -> LoadedCertificate:
        """Read and check the files. Raises ConfigError naming the option and the file that gRPC could not use."""
        cert, key = read_file("--cert", self.cert), read_file("--key", self.key, MAX_KEY_FILE)
        client_ca = read_file("--client-ca", self.client_ca) if self.client_ca else None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.cert, self.key, password=self._no_password)
        except ssl.SSLError as error:
            raise ConfigError(_pair_fault(self.cert, self.key, error)) from error
        except OSError as error:  # the files were deleted meanwhile
            raise ConfigError(f"--cert {self.cert}, --key {self.key}: {error.strerror or error}") from error
        if self.client_ca is not None:
            try:
                context.load_verify_locations(self.client_ca)
            except ssl.SSLError as error:
                raise ConfigError(f"--client-ca {self.client_ca}: no certificate in PEM form") from error
            except OSError as error:
                raise ConfigError(f"--client-ca {self.client_ca}: {error.strerror or error}") from error
        shown = grpc.ssl_server_certificate_configuration([(key, cert)], root_certificates=client_ca)
        ends = {"server": _first_end(cert)} | ({} if client_ca is None else {"client_ca": _first_end(client_ca)})
        return LoadedCertificate(shown=shown, ends=ends)

    def _no_password(self) -> str:
        raise ConfigError(f"--key {self.key} is encrypted, the server needs it without a passphrase")


class Certificates:
    """The certificate that gRPC uses in each handshake."""

    def __init__(self, files: CertificateFiles) -> None:
        self.files = files
        self._watched = Watched(files.paths, files.read)
        self._given = 0  # the version that gRPC has

    def attach(self, warn: Callable[[str], None]) -> None:
        """Set the function that receives warnings: of files that others can read, or that can no longer be read."""
        self._watched.attach(warn)
        for text in caution("--key", self.files.key):
            warn(text)

    @property
    def ends(self) -> dict[str, float]:
        """Ends of the certificates in use, by file: `server`, `client_ca`."""
        return self._watched.current.ends

    def renew(self) -> None:
        """Read the files again if they have changed."""
        self._watched.renew()

    def credentials(self) -> grpc.ServerCredentials:
        """Return credentials for gRPC, which asks for a newer certificate before every handshake, from its own
        threads."""
        return grpc.dynamic_ssl_server_credentials(
            self._watched.current.shown, self._newer, require_client_authentication=self.files.client_ca is not None
        )

    def _newer(self) -> grpc.ServerCertificateConfiguration | None:
        """Return the certificate if gRPC has not got it yet, whichever thread read it."""
        self._watched.renew()
        version = self._watched.version
        if version == self._given:
            return None
        self._given = version
        return self._watched.current.shown


def _first_end(pem: bytes) -> float:
    try:
        return min(ends_of(pem), default=float("inf"))
    except (ValueError, IndexError):  # OpenSSL accepts the certificate, and judges its dates at the handshake
        return float("inf")


def _pair_fault(cert: Path, key: Path, error: ssl.SSLError) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"--key {key} does not belong to the certificate --cert {cert}"
    return f"--cert {cert}, --key {key}: not a certificate and its key in PEM form ({error.reason or error})"
