"""Certificates and keys as values: an authority, and the certificates it signs. Nothing here reads or writes a file."""

from __future__ import annotations

import ipaddress
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID as Use
from cryptography.x509.oid import NameOID

from sl_common.errors import ConfigError
from sl_server.security.crl import CA_DAYS, CLOCK_SLACK


@dataclass(frozen=True, kw_only=True, slots=True)
class Issued:
    """A certificate and its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def cert_pem(self) -> bytes:
        """The certificate in PEM form, which is public."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """The private key in PEM form, which is secret."""
        encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        return self.key.private_bytes(encoding, form, serialization.NoEncryption())


def make_ca(days: int = CA_DAYS, *, now: datetime | None = None) -> Issued:
    """Make a new authority, which can sign certificates but no further authorities."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(f"Cutlayer CA {secrets.token_hex(4)}")  # the random part tells two authorities apart
    builder = _begin(subject, subject, key.public_key(), key, days, now)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    return Issued(certificate=builder.sign(key, hashes.SHA256()), key=key)


def issue(ca: Issued, name: str, days: int, *, hosts: Sequence[str] = (), now: datetime | None = None) -> Issued:
    """Sign a new certificate: a server's if `hosts` are given, else a client's. `now` is for tests of dates."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _begin(_name(name), ca.certificate.subject, key.public_key(), ca.key, days, now)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([Use.SERVER_AUTH if hosts else Use.CLIENT_AUTH]), False)
    if hosts:
        builder = builder.add_extension(x509.SubjectAlternativeName([_alternative(host) for host in hosts]), False)
    return Issued(certificate=builder.sign(ca.key, hashes.SHA256()), key=key)


def reissue(ca: Issued, old: x509.Certificate, days: int, *, now: datetime | None = None) -> x509.Certificate:
    """Sign the same certificate again: key, names and role stay, number and dates are new.

    It does not outlive the authority.
    """
    key = old.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey), "of another kind than this module makes"
    left = (ca.certificate.not_valid_after_utc - (now or datetime.now(UTC))).days
    builder = _begin(old.subject, ca.certificate.subject, key, ca.key, min(days, left), now)
    for extension in old.extensions:
        if isinstance(extension.value, _KEPT):
            builder = builder.add_extension(extension.value, extension.critical)
    return builder.sign(ca.key, hashes.SHA256())


_KEPT = (x509.BasicConstraints, x509.KeyUsage, x509.ExtendedKeyUsage, x509.SubjectAlternativeName)


def _begin(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    signer: ec.EllipticCurvePrivateKey,
    days: int,
    now: datetime | None,
) -> x509.CertificateBuilder:
    now = now or datetime.now(UTC)
    return (
        x509.CertificateBuilder(subject_name=subject, issuer_name=issuer, public_key=key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SLACK)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), False)
    )


def _name(text: str) -> x509.Name:
    try:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
    except ValueError as error:  # X.509 limits the bytes of a name
        raise ConfigError(f"{text!r} cannot be in a certificate: {error}") from error


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        pass
    try:
        name = host.encode("idna").decode()
    except UnicodeError as error:
        raise ConfigError(f"--host {host!r} is no host name: {error}") from error
    if not name or not set(name.lower()) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_.*"):
        raise ConfigError(f"--host {host!r}: write a host name or an address, without a port")
    return x509.DNSName(name)


def hosts_of(extra: Sequence[str]) -> list[str]:
    """Return the names of a server's certificate: every usual name of this machine, and `extra`."""
    return list(dict.fromkeys(["localhost", "127.0.0.1", "::1", socket.gethostname(), *extra]))
