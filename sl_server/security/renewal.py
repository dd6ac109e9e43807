"""Renewal: new dates for a certificate with the same key, names and role, and replacement of an authority.

Law: each step replaces one file by one rename, and the folder is usable after each. A certificate therefore keeps its
key: a pair of files could not change at once while a server reads them. For another key, revoke the old certificate
and make a new pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import NameOID

from sl_common.errors import ConfigError
from sl_common.host.files import make_folder, sync_folder, write_atomically
from sl_common.host.locks import sole_writer
from sl_common.names import is_name
from sl_server.security.certificates import RESERVED, REVOKED, UNREADABLE, CertificateFolder, WrittenFile
from sl_server.security.crl import CA_DAYS, make_list
from sl_server.security.issuing import Issued, make_ca, reissue

_PEM = serialization.Encoding.PEM


def renew(here: CertificateFolder, names: Sequence[str], days: int) -> list[WrittenFile]:
    """Renew the certificates of these names. Raises ConfigError, with nothing changed, for one that this folder did
    not make."""
    authorities = here.authorities("--renew")
    ca = authorities[0]
    if ca.certificate.not_valid_after_utc <= datetime.now(UTC) + timedelta(days=1):
        raise ConfigError(
            f"--renew: {here.cert('ca')} expires on {_date(ca.certificate)}: --renew-ca makes another one"
        )
    with sole_writer(here.path, "certs", keep=False):
        new = {name: reissue(ca, _old(here, name, authorities), days) for name in dict.fromkeys(names)}
        written = []
        try:
            for name, certificate in new.items():
                _supersede(here, name)
                write_atomically(here.cert(name), certificate.public_bytes(_PEM), mode=0o644)
                written.append(WrittenFile(path=here.cert(name), what=f"holds until {_date(certificate)}"))
        except OSError as error:
            raise ConfigError(f"--renew: {error.filename or here.path}: {error.strerror or error}") from error
        return written


def _old(here: CertificateFolder, name: str, authorities: Sequence[Issued]) -> x509.Certificate:
    """Return the certificate to renew. Raises ConfigError unless this folder made it, with its key, and it is not
    revoked."""
    if name == "ca":
        raise ConfigError("--renew ca: an authority is replaced, not renewed: --renew-ca")
    if not is_name(name) or name == REVOKED:
        raise ConfigError(f"--renew {name[:80]!r}: no name of a certificate")
    try:
        one = x509.load_pem_x509_certificate(here.cert(name).read_bytes())
        CertificateFolder.issuer_of(one, authorities)
        key = serialization.load_pem_private_key(here.key(name).read_bytes(), None)
        lists = here.lists()
    except OSError as error:
        raise ConfigError(f"--renew {name}: {error.filename}: {error.strerror or error}") from error
    except (*UNREADABLE, InvalidSignature) as error:
        raise ConfigError(f"--renew {name}: not of this authority, or damaged: {error!r}") from error
    if key.public_key() != one.public_key():
        raise ConfigError(f"--renew {name}: {here.key(name)} is not the key of {here.cert(name)}")
    common = [str(part.value) for part in one.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if common != [name]:
        raise ConfigError(f"--renew {name}: {here.cert(name)} is of {', '.join(common)}")
    if any(listed.issuer == one.issuer and _holds(listed, one) for listed in lists):
        raise ConfigError(
            f"--renew {name}: {here.cert(name)} is revoked, and so is its key: move both files away and use --add"
        )
    return one


def _holds(listed: x509.CertificateRevocationList, one: x509.Certificate) -> bool:
    return listed.get_revoked_certificate_by_serial_number(one.serial_number) is not None


def _supersede(here: CertificateFolder, name: str) -> None:
    """Keep the certificate that will be replaced: it stays valid until its date, and --revoke needs its number."""
    kept = here.superseded(name)
    now = datetime.now(UTC)
    old = [one for one in here.certificates(name) if one.not_valid_after_utc > now]
    make_folder(kept.parent)
    write_atomically(kept, b"".join(one.public_bytes(_PEM) for one in dict.fromkeys(old)), mode=0o644)


def renew_ca(here: CertificateFolder, days: int) -> list[WrittenFile]:
    """Make a new authority beside the old one: `ca.pem` then holds both, `ca.key` the new key. Raises ConfigError."""
    old = here.authorities("--renew-ca")
    before = here.previous
    if len(old) > 1:
        raise ConfigError(f"--renew-ca: {before.cert('ca')} is being replaced already: --drop-ca ends that")
    new = make_ca(max(days, CA_DAYS))
    with sole_writer(here.path, "certs", keep=False):
        try:
            make_folder(before.path)
            write_atomically(before.key("ca"), old[0].key_pem, mode=0o600)
            write_atomically(before.cert("ca"), old[0].cert_pem, mode=0o644)
            lists = here.revoked.read_bytes() if here.revoked.exists() else make_list(old[0].certificate, old[0].key)
            write_atomically(here.revoked, make_list(new.certificate, new.key) + lists, mode=0o644)
            write_atomically(here.cert("ca"), new.cert_pem + old[0].cert_pem, mode=0o644)  # valid with either key
            write_atomically(here.key("ca"), new.key_pem, mode=0o600)
        except OSError as error:
            raise ConfigError(f"--renew-ca: {error.filename or here.path}: {error.strerror or error}") from error
    return [
        WrittenFile(
            path=here.cert("ca"), what="to the server and every client, first of all: both authorities, new and old"
        ),
        WrittenFile(path=here.revoked, what="to the server, for --revoked: a list of each"),
        WrittenFile(path=here.key("ca"), what="keep it offline: the new authority's"),
        WrittenFile(path=before.key("ca"), what="keep it offline until --drop-ca: it still revokes"),
    ]


def drop_ca(here: CertificateFolder) -> list[WrittenFile]:
    """Trust the new authority alone. Raises ConfigError while the old one's certificates are still in use in the
    folder."""
    authorities = here.authorities("--drop-ca")
    if len(authorities) < 2:
        raise ConfigError(f"--drop-ca: there is one authority in {here.cert('ca')}: --renew-ca makes another one")
    new, old = authorities
    left = _signed_by(here, old)
    if left:
        raise ConfigError(f"--drop-ca: still of the old authority: {', '.join(left)}; --renew them first")
    with sole_writer(here.path, "certs", keep=False):
        try:
            write_atomically(here.cert("ca"), new.cert_pem, mode=0o644)
            kept = [one for one in here.lists() if one.issuer == new.certificate.subject]
            write_atomically(here.revoked, b"".join(one.public_bytes(_PEM) for one in kept), mode=0o644)
            for path in (here.previous.cert("ca"), here.previous.key("ca")):
                path.unlink()
            sync_folder(here.previous.path)
        except OSError as error:
            raise ConfigError(f"--drop-ca: {error.filename or here.path}: {error.strerror or error}") from error
    return [
        WrittenFile(path=here.cert("ca"), what="to the server and every client: the new authority alone"),
        WrittenFile(path=here.revoked, what="to the server, for --revoked"),
    ]


def _signed_by(here: CertificateFolder, ca: Issued) -> list[str]:
    """Return the names of certificates in the folder that this authority signed and that are still accepted."""
    found, now = [], datetime.now(UTC)
    for path in sorted(here.path.glob("*.pem")):
        if path.stem in (RESERVED[0], REVOKED):
            continue
        try:
            one = x509.load_pem_x509_certificate(path.read_bytes())
        except (OSError, *UNREADABLE):
            continue
        is_revoked = any(listed.issuer == one.issuer and _holds(listed, one) for listed in here.lists())
        if one.issuer == ca.certificate.subject and one.not_valid_after_utc > now and not is_revoked:
            found.append(path.stem)
    return found


def _date(certificate: x509.Certificate) -> str:
    return f"{certificate.not_valid_after_utc:%Y-%m-%d}"
