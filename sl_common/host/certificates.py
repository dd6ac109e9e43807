"""Expiry dates of PEM certificates, read without a library: a device has none, and Python's reads no end dates."""

from __future__ import annotations

import base64
import re
from datetime import UTC, datetime

WARN_S = 14 * 86400.0  # time before expiry when warnings begin; docker/prometheus/rules.yml uses the same
DAY_S = 86400.0  # time between two warnings
_BLOCK = re.compile(rb"-----BEGIN CERTIFICATE-----(.+?)-----END CERTIFICATE-----", re.DOTALL)
_SEQUENCE, _VERSION, _UTC_TIME, _TIME = 0x30, 0xA0, 0x17, 0x18  # tags of DER


def ends_of(pem: bytes) -> list[float]:
    """Return the expiry of each certificate in seconds since 1970. Raises ValueError if one is malformed."""
    return [_end(base64.b64decode(block)) for block in _BLOCK.findall(pem)]


def left_in_words(ends: float, now: float) -> str:
    """Return the expiry in words: `expires on 2027-01-31, in 12 days`."""
    date = datetime.fromtimestamp(ends, UTC)
    if ends <= now:
        return f"expired on {date:%Y-%m-%d}"
    days = int((ends - now) // DAY_S)
    return f"expires on {date:%Y-%m-%d}, in {days} day{'' if days == 1 else 's'}"


def _end(der: bytes) -> float:
    """Return one certificate's expiry: the second time in the field `validity` (RFC 5280, section 4.1)."""
    (_, certificate), *_ = _parts(der)
    (_, signed), *_ = _parts(certificate)
    fields = [part for part in _parts(signed) if part[0] != _VERSION]
    if len(fields) < 4 or fields[3][0] != _SEQUENCE:
        raise ValueError("no certificate: its dates are not where they belong")
    _begin, (tag, text) = _parts(fields[3][1])
    form = {_UTC_TIME: "%y%m%d%H%M%SZ", _TIME: "%Y%m%d%H%M%SZ"}.get(tag, "")
    when = datetime.strptime(text.decode("ascii"), form).replace(tzinfo=UTC)
    if tag == _UTC_TIME and when.year >= 2050:  # X.509 and Python interpret two-digit years differently
        when = when.replace(year=when.year - 100)
    return when.timestamp()


def _parts(data: bytes) -> list[tuple[int, bytes]]:
    """Return the elements of a DER sequence as tag and contents."""
    found, at = [], 0
    while at < len(data):
        tag, length, at = data[at], data[at + 1 : at + 2], at + 2
        size = length[0] if length else 0
        if size & 0x80:
            count = size & 0x7F
            size, at = int.from_bytes(data[at : at + count], "big"), at + count
        if not length or at + size > len(data):
            raise ValueError("no certificate: its end is missing")
        found.append((tag, data[at : at + size]))
        at += size
    return found
