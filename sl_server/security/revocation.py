"""Revoked client certificates: the CA's own list (X.509 CRL), verified, and read again when it changes.

gRPC for Python cannot pass such a list to its TLS, so a connection with a revoked certificate is established and then
refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from sl_common.errors import ConfigError
from sl_common.host.extras import how_to_install
from sl_common.host.text import printable
from sl_server.security.watched_files import Watched, read_file

if TYPE_CHECKING:
    from cryptography import x509


@dataclass(frozen=True, kw_only=True, slots=True)
class _Listed:
    issuer: x509.Name
    serials: frozenset[int]
    until: datetime | None  # when the authority promised a newer list
    number: int | None  # the authority raises it with each list; None if it numbers none

    def check_follows(self, newest: _Listed, what: str) -> None:
        """Raise ConfigError if this list is older than another of its authority, or differs under the same number."""
        if newest.number is None:
            return
        if self.number is None or self.number < newest.number:
            raise ConfigError(
                f"{what} has number {self.number}, and one with number {newest.number} was read before: an older list"
            )
        if self.number == newest.number and self.serials != newest.serials:
            raise ConfigError(f"{what} has number {self.number} as the list before, and revokes other certificates")


class RevocationList:
    """The file of --revoked: a list of each authority in --client-ca, or of some of them."""

    def __init__(self, path: Path, client_ca: Path) -> None:
        self._path = path
        self._newest: Mapping[bytes, _Listed] = {}  # by authority
        self._watched = Watched([path, client_ca], lambda: self._next(client_ca))

    def _next(self, client_ca: Path) -> Mapping[bytes, _Listed]:
        """Return the lists as they are now. Raises ConfigError for an older list that would accept a revoked
        certificate again.

        The list of an authority that is no longer trusted may disappear.
        """
        found, trusted = _read(self._path, client_ca)
        for authority, newest in self._newest.items():
            if authority in found:
                found[authority].check_follows(newest, f"--revoked {self._path}")
            elif authority in trusted:
                raise ConfigError(f"--revoked {self._path} holds no list of {_name(newest.issuer)} any more")
        self._newest = found
        return found

    def attach(self, warn: Callable[[str], None]) -> None:
        """Set the function that receives warnings: of a list that is out of date, or can no longer be read."""
        self._watched.attach(warn)
        for until in (listed.until for listed in self._watched.current.values()):
            if until is None or until >= datetime.now(UTC):
                continue
            warn(f"--revoked {self._path} is out of date since {until:%Y-%m-%d}; it stays in use")

    @property
    def version(self) -> int:
        """A number that changes with the file."""
        return self._watched.version

    def renew(self) -> None:
        """Read the file again if it has changed."""
        self._watched.renew()

    def holds(self, certificate: bytes) -> bool:
        """Return True if a verified certificate in PEM form is on the list; an unreadable one counts as revoked."""
        from cryptography import x509

        self.renew()
        try:
            shown = x509.load_pem_x509_certificate(certificate)
        except (ValueError, x509.InvalidVersion):
            return True
        lists = self._watched.current.values()
        return any(shown.issuer == listed.issuer and shown.serial_number in listed.serials for listed in lists)


def _read(path: Path, client_ca: Path) -> tuple[dict[bytes, _Listed], set[bytes]]:
    """Return the lists by trusted authority, and the trusted authorities. Lists of other authorities are ignored.

    Raises ConfigError if there are only lists of other authorities.
    """
    try:
        from cryptography import x509
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.hashes import SHA256

        from sl_server.security.crl import read_lists
    except ModuleNotFoundError as error:
        raise ConfigError(f"--revoked needs the package cryptography: {how_to_install('certs')}") from error
    data, trusted = read_file("--revoked", path), read_file("--client-ca", client_ca)
    try:
        authorities = {one.fingerprint(SHA256()): one for one in x509.load_pem_x509_certificates(trusted)}
        found = {}
        for listed in read_lists(data):
            for key in (key for key, authority in authorities.items() if _signed(listed, authority)):
                if key in found:
                    raise ConfigError(f"--revoked {path} holds two lists of {_name(listed.issuer)}")
                found[key] = _listed(listed)
        if not found:
            raise ConfigError(f"--revoked {path} was not signed by --client-ca {client_ca}")
        return found, set(authorities)
    except (ValueError, TypeError, x509.InvalidVersion, UnsupportedAlgorithm) as error:
        raise ConfigError(f"--revoked {path}: not a list of revoked certificates in PEM form ({error})") from error


def _listed(listed: x509.CertificateRevocationList) -> _Listed:
    serials = frozenset(one.serial_number for one in listed)
    until, number = listed.next_update_utc, _number(listed)
    return _Listed(issuer=listed.issuer, serials=serials, until=until, number=number)


def _name(issuer: x509.Name) -> str:
    return printable(issuer.rfc4514_string())


def _number(listed: x509.CertificateRevocationList) -> int | None:
    from cryptography import x509

    try:
        return listed.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        return None


def _signed(listed: x509.CertificateRevocationList, authority: x509.Certificate) -> bool:
    if listed.issuer != authority.subject:
        return False
    return listed.is_signature_valid(authority.public_key())  # type: ignore[arg-type]
