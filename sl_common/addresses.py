"""Addresses that people write: HOST:PORT, read by one rule for every option of both commands.

Law: nothing is guessed. An IPv6 address must be in brackets, since `::1:5005` is an address too. A URL is refused,
since its scheme would promise things that other options decide. The error names the form that is expected.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass

from sl_common.errors import ConfigError

USUAL_PORT = 50051
MAX_PORT = 65535
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_ALL = "0.0.0.0"  # noqa: S104  (a text)
_MAX_NAME = 253  # characters, of a host's name
_PORT = re.compile(r"[0-9]{1,5}")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_TARGET = re.compile(r"(?:dns|ipv4|ipv6|unix-abstract|vsock|xds):(?=.*:)(.*)", re.DOTALL)
_BRACKETED = re.compile(r"\[(.*)\](?::(.*))?", re.DOTALL)


class _Unfit(Exception):
    """Reason why a text is not an address."""


@dataclass(frozen=True, slots=True)
class Address:
    """A host without brackets, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return joined(self.host, self.port)

    @property
    def bracketed(self) -> str:
        """The host in the form that it has in an address or a URL."""
        return f"[{self.host}]" if ":" in self.host else self.host


def joined(host: str, port: int) -> str:
    """Return HOST:PORT of a host with or without brackets."""
    return f"{Address(host.strip('[]'), port).bracketed}:{port}"


def address_to_reach(text: str, option: str) -> str:
    """Return a server's HOST:PORT, or unix:PATH, as gRPC takes it.

    Raise ConfigError with the option and the form that is expected.
    """
    if text.strip().startswith("unix:") and text.strip() != "unix:":
        return text.strip()
    return str(_read(text, option, lowest=1, usual_port=USUAL_PORT))


def address_to_listen(text: str, option: str, usual_port: int = USUAL_PORT, host: str = "127.0.0.1") -> Address:
    """Return HOST:PORT, or PORT at `host`; port 0 means a free one.

    Raise ConfigError with the option and the form that is expected.
    """
    plain = text.strip().removeprefix(":")
    if plain.isascii() and plain.isdecimal():
        text = f"{host}:{plain}"
    return _read(text, option, lowest=0, usual_port=usual_port)


def _read(text: str, option: str, *, lowest: int, usual_port: int) -> Address:
    try:
        return _address(text.strip(), lowest)
    except _Unfit as why:
        better = next(_better(text.strip(), lowest, usual_port), None)
        here = f", here {better}" if better else ""
        raise ConfigError(f"{option} {text[:200]!r}: write it as HOST:PORT{here} ({why})") from None


def _address(text: str, lowest: int) -> Address:
    """Return the address of a text. Raise _Unfit if it is none."""
    if not text:
        raise _Unfit("it is empty")
    if text.startswith("unix:"):
        raise _Unfit("a socket is unix:PATH, for sl-client alone: a server listens on TCP")
    if url := _URL.fullmatch(text):
        hint = "; --ca turns TLS on" if url[1] in ("https", "grpcs") and lowest else ""
        raise _Unfit(f"{url[1]}:// makes it a URL, and an address has no scheme{hint}")
    if _TARGET.fullmatch(text):
        raise _Unfit(f"an address has no scheme {text.partition(':')[0]}:")
    if any(one.isspace() or not one.isprintable() for one in text):
        raise _Unfit("an address has no spaces")
    if "/" in text or "@" in text or "?" in text or "#" in text:
        raise _Unfit("an address has no path and no user")
    bracketed = _BRACKETED.fullmatch(text)
    if bracketed:
        host, port = bracketed[1], bracketed[2]
        if _ipv6(host) is None:
            raise _Unfit(f"{host[:80]!r} in brackets is no IPv6 address")
    elif text.count(":") > 1:
        raise _Unfit("it has more than one colon: an IPv6 address stands in brackets")
    else:
        host, _, port = text.partition(":")
        _check_host(host)
    if not port:
        raise _Unfit("the port is missing")
    if not _PORT.fullmatch(port) or not lowest <= int(port) <= MAX_PORT:
        raise _Unfit(f"a port is a number from {lowest} to {MAX_PORT}, not {port[:80]!r}")
    return Address(host, int(port))


def _check_host(host: str) -> None:
    """Raise _Unfit if a text is neither a name nor an IPv4 address.

    Underscores are allowed: containers have them in their names.
    """
    if not host:
        raise _Unfit("the host is missing")
    if host == "*":
        raise _Unfit(f"all addresses of a machine are {_ALL}, or [::]")
    if not host.isascii():
        raise _Unfit("a name with other letters than a to z is written in its form with xn--")
    labels = host.removesuffix(".").split(".")
    if len(host) > _MAX_NAME or not all(_LABEL.fullmatch(label) for label in labels):
        raise _Unfit(f"{host[:80]!r} is no name of a host")
    if labels[-1].isdecimal() and _ipv4(host) is None:
        raise _Unfit(f"{host[:80]!r} is no IPv4 address")


def _better(text: str, lowest: int, usual_port: int) -> Iterator[str]:
    """Yield likely meanings in the form that is expected, the likeliest first."""
    for plain in () if text.startswith("unix:") else _plainer(text):
        for candidate in (plain, f"{plain}:{usual_port}"):
            try:
                yield str(_address(candidate, lowest))
            except _Unfit:
                continue


def _plainer(text: str) -> Iterator[str]:
    url = _URL.fullmatch(text) or _TARGET.fullmatch(text)
    rest = url[url.re.groups] if url else text
    parts = [part for part in rest.split("/") if part]
    rest = "".join((parts[-1] if text.startswith("dns:") else parts[0]) if parts else "").rpartition("@")[2].strip()
    rest = re.split(r"[?#]", rest)[0].rstrip(":")
    head, _, tail = rest.rpartition(":")
    yield rest
    if rest.isascii() and rest.isdecimal():
        yield f"localhost:{rest}"
    if _ipv6(head) is not None and tail.isascii() and tail.isdecimal():
        yield f"[{head}]:{tail}"
    if _ipv6(rest) is not None:
        yield f"[{rest}]"
    if head in ("", "*"):
        yield f"{_ALL if head else 'localhost'}:{tail}"
    yield from _ascii(head, tail) if head else _ascii(rest, "")


def _ascii(host: str, port: str) -> Iterator[str]:
    """Yield a name in its form with xn--, if every version of the rule gives the same."""
    try:
        name = host.encode("idna")
        if not host.isascii() and name.decode("idna") == host.lower():
            yield f"{name.decode()}:{port}" if port else name.decode()
    except UnicodeError:
        return


def _ipv6(text: str) -> ipaddress.IPv6Address | None:
    try:
        return ipaddress.IPv6Address(text)
    except ValueError:
        return None


def _ipv4(text: str) -> ipaddress.IPv4Address | None:
    try:
        return ipaddress.IPv4Address(text)
    except ValueError:
        return None
