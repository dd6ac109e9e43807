"""Until when certificates in PEM form hold, without a library for them: a device has none, and the standard one reads no end dates."""

from __future__ import annotations

import base64
import re
from datetime import UTC, datetime

WARN_S = 14 * 86400.0  # before its end a certificate is warned of; docker/prometheus/rules.yml alerts at the same time
DAY_S = 86400.0  # after which it is said again
_BLOCK = re.compile(rb"-----BEGIN CERTIFICATE-----(.+?)-----END CERTIFICATE-----", re.DOTALL)
_SEQUENCE, _VERSION, _UTC_TIME, _TIME = 0x30, 0xA0, 0x17, 0x18  # tags of DER


def ends_of(pem: bytes) -> list[float]:
    """The end of each certificate, in seconds since 1970. Raises ValueError for what is none."""
    return [_end(base64.b64decode(block)) for block in _BLOCK.findall(pem)]


def left_in_words(ends: float, now: float) -> str:
    """As in `expires on 2027-01-31, in 12 days`."""
    date = datetime.fromtimestamp(ends, UTC)
    if ends <= now:
        return f"expired on {date:%Y-%m-%d}"
    days = int((ends - now) // DAY_S)
    return f"expires on {date:%Y-%m-%d}, in {days} day{'' if days == 1 else 's'}"


def _end(der: bytes) -> float:
    """Of one certificate (RFC 5280, 4.1): the second time of the fifth field, or of the fourth where the version is left out."""
    (_, certificate), *_ = _parts(der)
    (_, signed), *_ = _parts(certificate)
    fields = [part for part in _parts(signed) if part[0] != _VERSION]
    if len(fields) < 4 or fields[3][0] != _SEQUENCE:
        raise ValueError("no certificate: its dates are not where they belong")
    _begin, (tag, text) = _parts(fields[3][1])
    form = {_UTC_TIME: "%y%m%d%H%M%SZ", _TIME: "%Y%m%d%H%M%SZ"}.get(tag, "")
    when = datetime.strptime(text.decode("ascii"), form).replace(tzinfo=UTC)
    if tag == _UTC_TIME and when.year >= 2050:  # X.509 divides the centuries elsewhere than Python
        when = when.replace(year=when.year - 100)
    return when.timestamp()


def _parts(data: bytes) -> list[tuple[int, bytes]]:
    """The elements of a DER sequence: tag and contents."""
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
