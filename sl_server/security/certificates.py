"""The folder of certificates for one run: a CA, the server's, and one for each client, with its id as common name.

Law: only its owner can read a private key, from its first byte on. Files are never overwritten, with two exceptions:
the list of revoked certificates, and files that `renewal` was asked to renew. Each of these is replaced as a whole,
and no two files have to change at the same moment.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from sl_common.errors import ConfigError
from sl_common.host.files import create_atomically, remove_parts, write_atomically
from sl_common.host.locks import sole_writer
from sl_common.names import is_name
from sl_server.security.crl import CA_DAYS, make_list, read_lists
from sl_server.security.issuing import Issued, hosts_of, issue, make_ca

UNREADABLE = (ValueError, TypeError, x509.InvalidVersion, x509.ExtensionNotFound, UnsupportedAlgorithm)
RESERVED = ("ca", "server")
REVOKED = "revoked"


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenFile:
    """One file that was written, and its purpose."""

    path: Path
    what: str


class CertificateFolder:
    """A folder of certificates in PEM form: NAME.pem and NAME.key for the authority `ca`, the `server` and each
    client."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def cert(self, name: str) -> Path:
        """Return the path of a certificate."""
        return self._path / f"{name}.pem"

    def key(self, name: str) -> Path:
        """Return the path of a private key."""
        return self._path / f"{name}.key"

    @property
    def path(self) -> Path:
        """Path of the folder."""
        return self._path

    @property
    def previous(self) -> CertificateFolder:
        """The folder of the authority that is being replaced, while both are trusted."""
        return CertificateFolder(self._path / "previous")

    def superseded(self, name: str) -> Path:
        """Return the path of the renewed certificates of this name, in one file: they stay valid until their own
        dates."""
        return self._path / "superseded" / f"{name}.pem"

    @property
    def revoked(self) -> Path:
        """Path of the list of revoked certificates."""
        return self.cert(REVOKED)

    def fill(self, clients: Sequence[str], hosts: Sequence[str], days: int, *, add: bool) -> Iterator[WrittenFile]:
        """Make the certificates; nothing is written if a file exists already. With `add`, use the existing authority.

        If the command is killed, no certificate lacks its key, and the authority is written after everything else.
        """
        _check(clients)
        if add and not self.cert("ca").exists():
            raise ConfigError(f"--add: there is no {self.cert('ca')} to sign with; leave --add out to make one")
        with sole_writer(self._path, "certs", keep=False):
            yield from self._fill(clients, hosts, days, add=add)

    def _fill(self, clients: Sequence[str], hosts: Sequence[str], days: int, *, add: bool) -> Iterator[WrittenFile]:
        old = [name for name in RESERVED if add and self.cert(name).exists()]
        new = [name for name in (*RESERVED, *clients) if name not in old]
        self._look_for_room(new, add=add)
        ca = self._authority("--add") if add else make_ca(max(days, CA_DAYS))
        made = {name: ca if name == "ca" else self._issue(ca, name, hosts, days) for name in new}
        try:
            remove_parts(self._path)
            if not self.revoked.exists():
                create_atomically(self.revoked, make_list(ca.certificate, ca.key), mode=0o644)
                yield WrittenFile(path=self.revoked, what="to the server, for --revoked: nobody is locked out yet")
            for name, issued in reversed(made.items()):  # the authority comes last: without it the rest is useless
                create_atomically(self.key(name), issued.key_pem, mode=0o600)
                yield WrittenFile(path=self.key(name), what=_whose(name))
                create_atomically(self.cert(name), issued.cert_pem, mode=0o644)
                yield WrittenFile(path=self.cert(name), what=_what(name))
        except OSError as error:
            raise ConfigError(f"{error.filename or self._path}: {error.strerror or error}") from error

    def _look_for_room(self, new: Sequence[str], *, add: bool) -> None:
        files = [path for name in new for path in (self.cert(name), self.key(name))]
        files += [] if add else [self.revoked]
        for path in (path for path in files if path.exists()):
            hint = (
                "" if add or not self.cert("ca").exists() else "; --add makes further clients with the authority there"
            )
            whole = path.with_suffix(".pem") if add else self.cert("ca")
            if not whole.exists():
                hint = f"; there is no {whole}, as if a command that was to make both had been cut short"
            raise ConfigError(f"{path} exists and is not overwritten: choose another folder or remove it{hint}")

    def revoke(self, clients: Sequence[str]) -> list[WrittenFile]:
        """Put these clients' certificates in this folder on the list. Raises ConfigError, with nothing changed."""
        authorities = self.authorities("--revoke")
        with sole_writer(self._path, "certs", keep=False):
            return self._revoke(authorities, clients)

    def _revoke(self, authorities: Sequence[Issued], clients: Sequence[str]) -> list[WrittenFile]:
        """Put each certificate, and those of the same key that it replaced, on the list of the authority that signed
        it."""
        try:
            shown = {name: self.certificates(name) for name in clients}
            if "ca" in shown:
                raise ConfigError("--revoke ca: an authority cannot lock itself out; make another one")
            issuers = [self.issuer_of(one, authorities) for found in shown.values() for one in found]
            ones = [one for found in shown.values() for one in found]
            old = self.lists()
            if any(not any(_signed(one, ca) for ca in authorities) for one in old):
                raise ConfigError(f"--revoke: {self.revoked} is the list of another authority")
            new = []
            for ca in authorities:
                before = next((one for one in old if _signed(one, ca)), None)
                more = [one.serial_number for one, issuer in zip(ones, issuers, strict=True) if issuer is ca]
                new.append(make_list(ca.certificate, ca.key, before, more))
            write_atomically(self.revoked, b"".join(new))
        except OSError as error:
            raise ConfigError(f"--revoke: {error.filename or self.revoked}: {error.strerror or error}") from error
        except (*UNREADABLE, InvalidSignature) as error:
            raise ConfigError(f"--revoke {', '.join(clients)}: not of this authority, or damaged: {error!r}") from error
        return [
            WrittenFile(path=self.cert(name), what=", ".join(f"serial number {one.serial_number:x}" for one in found))
            for name, found in shown.items()
        ]

    def certificates(self, name: str) -> list[x509.Certificate]:
        """Return the certificate of this name, and those that it replaced. Raises OSError, ValueError."""
        files = [self.cert(name), *(path for path in [self.superseded(name)] if path.exists())]
        return [one for path in files for one in x509.load_pem_x509_certificates(path.read_bytes())]

    def lists(self) -> list[x509.CertificateRevocationList]:
        """Return the lists of revoked certificates, one of each authority. Raises OSError, ValueError."""
        return read_lists(self.revoked.read_bytes()) if self.revoked.exists() else []

    def authorities(self, option: str) -> list[Issued]:
        """Return the authority that signs, and the previous one while it is being replaced. Raises ConfigError."""
        before = self.previous
        found = [self._authority(option)]
        if before.cert("ca").exists() and before.key("ca").exists():
            old = before._authority(option)
            if old.certificate != found[0].certificate:  # equal if the replacement was cut short
                found.append(old)
        return found

    @staticmethod
    def issuer_of(one: x509.Certificate, authorities: Sequence[Issued]) -> Issued:
        """Return the authority that signed a certificate. Raises InvalidSignature or ValueError if none did."""
        for ca in authorities:
            if one.issuer == ca.certificate.subject:
                one.verify_directly_issued_by(ca.certificate)
                return ca
        raise ValueError("another authority signed it")

    def _issue(self, ca: Issued, name: str, hosts: Sequence[str], days: int) -> Issued:
        return issue(ca, name, days, hosts=hosts_of(hosts) if name == "server" else ())

    def _authority(self, option: str) -> Issued:
        try:
            certificates = x509.load_pem_x509_certificates(self.cert("ca").read_bytes())
            key = serialization.load_pem_private_key(self.key("ca").read_bytes(), None)
        except OSError as error:
            raise ConfigError(f"{option}: {error.filename}: {error.strerror or error}") from error
        except UNREADABLE as error:
            raise ConfigError(
                f"{option}: {self.cert('ca')} and {self.key('ca')} are not an authority: {error}"
            ) from error
        if isinstance(key, ec.EllipticCurvePrivateKey):
            for certificate in certificates:
                if key.public_key() == certificate.public_key():
                    return Issued(certificate=certificate, key=key)
        raise ConfigError(f"{option}: {self.key('ca')} is not the key of {self.cert('ca')}")


def _signed(listed: x509.CertificateRevocationList, ca: Issued) -> bool:
    return listed.issuer == ca.certificate.subject and listed.is_signature_valid(ca.key.public_key())


def _check(clients: Sequence[str]) -> None:
    for number, name in enumerate(clients):
        if not name or not is_name(name):
            raise ConfigError(f"--name {name[:80]!r}: a client's name has 1 to 64 printable characters without '/'")
        if name in (*RESERVED, REVOKED) or name in clients[:number]:
            raise ConfigError(f"--name {name!r} is taken: its files would be those of another")


def _what(name: str) -> str:
    where = {"ca": "to the server and every client: whom to trust", "server": "to the server: its certificate"}
    return where.get(name, f"to client {name}: its certificate")


def _whose(name: str) -> str:
    where = {"ca": "keep it offline: whoever has it can make clients and servers", "server": "to the server, secret"}
    return where.get(name, f"to client {name}, secret")
