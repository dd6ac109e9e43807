"""The authority's list of revoked certificates, as `sl-server certs` writes it; `revocation` reads it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

CA_DAYS = 3650  # the authority must outlive what it signs, so that a new certificate needs no new trust
CLOCK_SLACK = timedelta(hours=1)  # clocks of devices differ
_END = b"-----END X509 CRL-----"


def read_lists(data: bytes) -> list[x509.CertificateRevocationList]:
    """Return the lists in a file, one of each authority. Raises ValueError if there is none, or one is damaged."""
    *blocks, rest = data.split(_END)
    if not blocks or b"-----BEGIN" in rest:
        blocks.append(rest)
    return [x509.load_pem_x509_crl(block + _END if block is not rest else block) for block in blocks]


def make_list(
    authority: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
    old: x509.CertificateRevocationList | None = None,
    more: Sequence[int] = (),
) -> bytes:
    """Return the authority's list in PEM form: the old list's entries, and these serial numbers."""
    now = datetime.now(UTC)
    entries = dict.fromkeys(more, now) | {one.serial_number: one.revocation_date_utc for one in old or ()}
    number = 0 if old is None else old.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number + 1
    builder = x509.CertificateRevocationListBuilder().issuer_name(authority.subject).last_update(now - CLOCK_SLACK)
    builder = builder.next_update(now + timedelta(days=CA_DAYS)).add_extension(x509.CRLNumber(number), False)
    signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
    builder = builder.add_extension(signer, False)
    for serial, date in entries.items():
        one = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(date)
        builder = builder.add_revoked_certificate(one.build())
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
