"""Which HTTP proxy a connection to a server goes through: decided here, and not by gRPC, so that it can be said and refused.

The environment is read as gRPC reads it: the first of `grpc_proxy`, `https_proxy` and `http_proxy`, in lower case, but for the hosts of
`no_grpc_proxy` or `no_proxy`. What goes to this machine goes through none, or it would leave the machine.
"""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import re
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sl_common.addresses import joined
from sl_common.exits import is_loopback

PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")  # HTTP_PROXY and ALL_PROXY are not gRPC's
EXEMPTIONS = ("no_grpc_proxy", "no_proxy", "NO_PROXY")  # the last is not gRPC's, but goes around a proxy, which is safe
DIRECT = (("grpc.enable_http_proxy", 0), ("grpc.address_http_proxy_enabled_addresses", ""))  # options of a channel
_DEFAULT_PORT = 443  # of a proxy, in gRPC
_MAX_HEAD = 8192  # bytes of a proxy's answer


class Unusable(Exception):
    """A variable names a proxy that gRPC cannot use, and connections go around it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Proxy:
    """A proxy, and the variable that named it. Its credentials are in no text."""

    variable: str
    host: str
    port: int
    credentials: str = field(default="", repr=False)  # USER:PASSWORD, still quoted as in a URL

    def __str__(self) -> str:
        return f"http://{joined(self.host, self.port)}"

    @property
    def options(self) -> tuple[tuple[str, int | str], ...]:
        """Make a channel use this proxy and no other."""
        user = f"{self.credentials}@" if self.credentials else ""
        return (("grpc.http_proxy", f"http://{user}{joined(self.host, self.port)}"), DIRECT[1])

    def connect(self, server: str, timeout_s: float) -> socket.socket:
        """A connection through it to HOST:PORT. Raises OSError."""
        head = f"CONNECT {server} HTTP/1.1\r\nHost: {server}\r\n"
        if self.credentials:
            told = base64.b64encode(unquote(self.credentials).encode()).decode()
            head += f"Proxy-Authorization: Basic {told}\r\n"
        until = time.monotonic() + timeout_s
        line = socket.create_connection((self.host, self.port), timeout_s)
        try:
            line.sendall(f"{head}\r\n".encode())
            answer = b""
            while not answer.endswith(b"\r\n\r\n"):  # one at a time: what follows is the server's
                line.settimeout(max(0.001, until - time.monotonic()))
                byte = line.recv(1)
                if not byte or len(answer) > _MAX_HEAD:
                    raise OSError(f"the proxy {self} closed the connection")
                answer += byte
            status = answer.split(None, 2)[1:2]
            if status != [b"200"]:
                raise OSError(f"the proxy {self} answered {answer.splitlines()[0][:80]!r}")
        except BaseException:
            line.close()
            raise
        line.settimeout(timeout_s)
        return line


def find_proxy(server: str, environment: Mapping[str, str]) -> Proxy | None:
    """The proxy through which a connection to `server` (HOST:PORT) goes. Raises Unusable if the one that is named cannot be used."""
    variable = next((name for name in PROXY_VARIABLES if name in environment), None)
    if variable is None or not environment[variable].strip():  # set to nothing: none, whatever the next one says
        return None
    host, _, port = server.rpartition(":")
    host = host.strip("[]").rstrip(".").lower()
    exemptions = next((environment[name] for name in EXEMPTIONS if name in environment), "")
    if _is_here(server, host) or any(_holds(entry, host, port) for entry in re.split(r"[,\s]+", exemptions)):
        return None
    return _read(variable, environment[variable].strip())


def _read(variable: str, text: str) -> Proxy:
    # No word of what it says: there are passwords in it.
    told = Unusable(f"{variable} is not used: gRPC takes only a proxy written as http://HOST:PORT")
    try:
        url = urlsplit(text)
        host, port = url.hostname, url.port
    except ValueError:
        raise told from None
    if url.scheme != "http" or not host:
        raise told
    return Proxy(variable=variable, host=host, port=port or _DEFAULT_PORT, credentials=url.netloc.rpartition("@")[0])


def _is_here(server: str, host: str) -> bool:
    """Whether a connection stays on this machine."""
    if is_loopback(server) or host == "localhost" or host.endswith(".localhost"):
        return True
    address = _address_of(host)
    if address is not None:
        mapped = getattr(address, "ipv4_mapped", None)
        return address.is_unspecified or (mapped is not None and mapped.is_loopback)
    return host in _local_names()


def _local_names(hosts: Path = Path("/etc/hosts")) -> set[str]:
    """Names that mean loopback without asking anybody: where a proxy is needed, a name server may not answer for long."""
    found: dict[str, set[bool]] = {}
    with contextlib.suppress(OSError):
        for line in hosts.read_text(encoding="utf-8", errors="replace").splitlines():
            address, *names = line.partition("#")[0].split() or [""]
            known = _address_of(address.partition("%")[0])
            for name in names if known is not None else ():
                found.setdefault(name.lower(), set()).add(known.is_loopback)  # type: ignore[union-attr]
    return {name for name, here in found.items() if here == {True}}


def _holds(entry: str, host: str, port: str) -> bool:
    """Whether an entry of no_proxy means this host: `*`, a name with all below it, an address, a network, each with a port or not."""
    entry = entry.lower()
    if entry in ("", "*"):
        return entry == "*"
    address = _address_of(host)
    with contextlib.suppress(ValueError):
        network = ipaddress.ip_network(entry.strip("[]"), strict=False)
        return address is not None and address in network
    name, colon, wanted = entry.rpartition(":")
    if colon and wanted.isdecimal():
        return wanted == port and _holds(name.strip("[]"), host, port)
    name = entry.removeprefix("*").strip(".")
    return bool(name) and f".{host}".endswith(f".{name}")


def _address_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host)
    return None


def ways_around(server: str) -> str:
    """What a person can do who did not mean the proxy."""
    return f"no_proxy={server.rpartition(':')[0].strip('[]')} goes around it"


def channel_options(proxy: Proxy | None) -> tuple[tuple[str, int | str], ...]:
    """Take the decision out of gRPC's hands."""
    return DIRECT if proxy is None else proxy.options


def open_line(server: str, proxy: Proxy | None, timeout_s: float) -> socket.socket:
    """A TCP connection to HOST:PORT, as a channel would have one. Raises OSError, or ValueError for no HOST:PORT."""
    if proxy is not None:
        return proxy.connect(server, timeout_s)
    host, _, port = server.rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), timeout_s)
