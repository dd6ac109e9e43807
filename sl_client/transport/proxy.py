"""The HTTP proxy for a connection to a server: chosen here and not by gRPC, so that it can be reported.

The environment is read as gRPC reads it: the first of `grpc_proxy`, `https_proxy` and `http_proxy`, in lower case,
except for the hosts in `no_grpc_proxy` or `no_proxy`. A connection to this machine takes no proxy, so that it does not
leave the machine.
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
EXEMPTIONS = ("no_grpc_proxy", "no_proxy", "NO_PROXY")  # gRPC does not read the last, but to avoid a proxy is safe
DIRECT = (("grpc.enable_http_proxy", 0), ("grpc.address_http_proxy_enabled_addresses", ""))  # options of a channel
_DEFAULT_PORT = 443  # of a proxy, in gRPC
_MAX_ANSWER = 8192  # bytes of a proxy's answer


class UnusableProxy(Exception):
    """A variable names a proxy that gRPC cannot use, so connections are direct."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Proxy:
    """A proxy and the variable that names it. No text about it shows its credentials."""

    variable: str
    host: str
    port: int
    credentials: str = field(default="", repr=False)  # USER:PASSWORD, still quoted as in a URL

    def __str__(self) -> str:
        return f"http://{joined(self.host, self.port)}"

    @property
    def options(self) -> tuple[tuple[str, int | str], ...]:
        """Options of a channel that uses this proxy and no other."""
        user = f"{self.credentials}@" if self.credentials else ""
        return (("grpc.http_proxy", f"http://{user}{joined(self.host, self.port)}"), DIRECT[1])

    def connect(self, server: str, timeout_s: float) -> socket.socket:
        """Open a connection through this proxy to HOST:PORT. Raises OSError."""
        head = f"CONNECT {server} HTTP/1.1\r\nHost: {server}\r\n"
        if self.credentials:
            encoded = base64.b64encode(unquote(self.credentials).encode()).decode()
            head += f"Proxy-Authorization: Basic {encoded}\r\n"
        until = time.monotonic() + timeout_s
        line = socket.create_connection((self.host, self.port), timeout_s)
        try:
            line.sendall(f"{head}\r\n".encode())
            answer = b""
            while not answer.endswith(b"\r\n\r\n"):  # byte by byte: the bytes after it belong to the server
                line.settimeout(max(0.001, until - time.monotonic()))
                byte = line.recv(1)
                if not byte or len(answer) > _MAX_ANSWER:
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
    """Return the proxy for a connection to `server` (HOST:PORT), or None.

    Raises UnusableProxy if the named one cannot be used.
    """
    variable = next((name for name in PROXY_VARIABLES if name in environment), None)
    if variable is None or not environment[variable].strip():  # an empty one means no proxy, whatever the next one says
        return None
    host, _, port = server.rpartition(":")
    host = host.strip("[]").rstrip(".").lower()
    exemptions = next((environment[name] for name in EXEMPTIONS if name in environment), "")
    if _is_this_machine(server, host) or any(_exempts(entry, host, port) for entry in re.split(r"[,\s]+", exemptions)):
        return None
    return _read(variable, environment[variable].strip())


def _read(variable: str, text: str) -> Proxy:
    # The error does not quote the variable, which may hold a password.
    unusable = UnusableProxy(f"{variable} is not used: gRPC takes only a proxy written as http://HOST:PORT")
    try:
        url = urlsplit(text)
        host, port = url.hostname, url.port
    except ValueError:
        raise unusable from None
    if url.scheme != "http" or not host:
        raise unusable
    return Proxy(variable=variable, host=host, port=port or _DEFAULT_PORT, credentials=url.netloc.rpartition("@")[0])


def _is_this_machine(server: str, host: str) -> bool:
    """Return True if a connection stays on this machine."""
    if is_loopback(server) or host == "localhost" or host.endswith(".localhost"):
        return True
    address = _address_of(host)
    if address is not None:
        mapped = getattr(address, "ipv4_mapped", None)
        return address.is_unspecified or (mapped is not None and mapped.is_loopback)
    return host in _local_names()


def _local_names(hosts: Path = Path("/etc/hosts")) -> set[str]:
    """Return the names of loopback in /etc/hosts.

    No name server is asked, which might take long where a proxy is needed.
    """
    found: dict[str, set[bool]] = {}
    with contextlib.suppress(OSError):
        for line in hosts.read_text(encoding="utf-8", errors="replace").splitlines():
            address, *names = line.partition("#")[0].split() or [""]
            known = _address_of(address.partition("%")[0])
            for name in names if known is not None else ():
                found.setdefault(name.lower(), set()).add(known.is_loopback)  # type: ignore[union-attr]
    return {name for name, here in found.items() if here == {True}}


def _exempts(entry: str, host: str, port: str) -> bool:
    """Return True if an entry of no_proxy means this host.

    It is `*`, a domain, an address or a network, with or without a port.
    """
    entry = entry.lower()
    if entry in ("", "*"):
        return entry == "*"
    address = _address_of(host)
    with contextlib.suppress(ValueError):
        network = ipaddress.ip_network(entry.strip("[]"), strict=False)
        return address is not None and address in network
    name, colon, wanted = entry.rpartition(":")
    if colon and wanted.isdecimal():
        return wanted == port and _exempts(name.strip("[]"), host, port)
    name = entry.removeprefix("*").strip(".")
    return bool(name) and f".{host}".endswith(f".{name}")


def _address_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host)
    return None


def bypass_hint(server: str) -> str:
    """Return how to avoid the proxy, for a person who did not mean to use it."""
    return f"no_proxy={server.rpartition(':')[0].strip('[]')} goes around it"


def channel_options(proxy: Proxy | None) -> tuple[tuple[str, int | str], ...]:
    """Return the options of a channel that takes this proxy, or none; gRPC decides nothing."""
    return DIRECT if proxy is None else proxy.options


def open_tcp(server: str, proxy: Proxy | None, timeout_s: float) -> socket.socket:
    """Open a TCP connection to HOST:PORT as a channel would.

    Raises OSError, or ValueError for a text that is no HOST:PORT.
    """
    if proxy is not None:
        return proxy.connect(server, timeout_s)
    host, _, port = server.rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), timeout_s)
