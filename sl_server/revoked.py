"""Which client certificates were revoked: the CA's own list (X.509 CRL), checked against it, read anew when it changes.

gRPC for Python hands no such list to its TLS. So a connection with a revoked certificate comes about, and gets nothing but a no.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from sl_common.errors import ConfigError
from sl_common.host.extras import how_to_install
from sl_server.watched import Watched, read_file

if TYPE_CHECKING:
    from cryptography import x509


@dataclass(frozen=True, kw_only=True, slots=True)
class _Listed:
    issuer: x509.Name
    serials: frozenset[int]
    until: datetime | None  # when the authority promised a newer list
    number: int | None  # raised by the authority with each list; None if it counts none

    def check_follows(self, newest: _Listed, what: str) -> None:
        """Raise ConfigError if this list is older than one of the same authority, or another one under its number."""
        if self.issuer != newest.issuer or newest.number is None:
            return
        if self.number is None or self.number < newest.number:
            raise ConfigError(
                f"{what} has number {self.number}, and one with number {newest.number} was read before: an older list"
            )
        if self.number == newest.number and self.serials != newest.serials:
            raise ConfigError(f"{what} has number {self.number} as the list before, and revokes other certificates")


class Revoked:
    """A file for --revoked, of the authority in --client-ca."""

    def __init__(self, path: Path, client_ca: Path) -> None:
        self._path = path
        self._newest: _Listed | None = None
        self._watched = Watched([path, client_ca], lambda: self._next(client_ca))

    def _next(self, client_ca: Path) -> _Listed:
        """The list as it is now. Raises ConfigError for one that would let somebody in again whom a newer one keeps out."""
        found = _read(self._path, client_ca)
        if self._newest is not None:
            found.check_follows(self._newest, f"--revoked {self._path}")
        self._newest = found
        return found

    def attach(self, warn: Callable[[str], None]) -> None:
        """Tell of a list that is out of date, and later of one that cannot be read any more."""
        self._watched.attach(warn)
        until = self._watched.current.until
        if until is not None and until < datetime.now(UTC):
            warn(f"--revoked {self._path} is out of date since {until:%Y-%m-%d}; it stays in use")

    @property
    def version(self) -> int:
        """Changes with the file."""
        return self._watched.version

    def renew(self) -> None:
        """Read the file again if it has changed."""
        self._watched.renew()

    def holds(self, certificate: bytes) -> bool:
        """Whether a verified certificate in PEM form is on the list; one that cannot be read counts as revoked."""
        from cryptography import x509

        self.renew()
        listed = self._watched.current
        try:
            shown = x509.load_pem_x509_certificate(certificate)
        except (ValueError, x509.InvalidVersion):
            return True
        return shown.issuer == listed.issuer and shown.serial_number in listed.serials


def _read(path: Path, client_ca: Path) -> _Listed:
    """Raises ConfigError unless the list is signed by the authority: nobody else can let somebody in again."""
    try:
        from cryptography import x509
        from cryptography.exceptions import UnsupportedAlgorithm
    except ModuleNotFoundError as error:
        raise ConfigError(f"--revoked needs the package cryptography: {how_to_install('certs')}") from error
    data, trusted = read_file("--revoked", path), read_file("--client-ca", client_ca)
    try:
        listed = x509.load_pem_x509_crl(data)
        authorities = x509.load_pem_x509_certificates(trusted)
        if not any(_signed(listed, authority) for authority in authorities):
            raise ConfigError(f"--revoked {path} was not signed by --client-ca {client_ca}")
        serials = frozenset(one.serial_number for one in listed)
        return _Listed(issuer=listed.issuer, serials=serials, until=listed.next_update_utc, number=_number(listed))
    except (ValueError, TypeError, x509.InvalidVersion, UnsupportedAlgorithm) as error:
        raise ConfigError(f"--revoked {path}: not a list of revoked certificates in PEM form ({error})") from error


def _number(listed: x509.CertificateRevocationList) -> int | None:
    from cryptography import x509

    try:
        return listed.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        return None


def _signed(listed: x509.CertificateRevocationList, authority: x509.Certificate) -> bool:
    return listed.issuer == authority.subject and listed.is_signature_valid(authority.public_key())  # type: ignore[arg-type]
