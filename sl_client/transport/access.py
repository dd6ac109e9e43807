"""The channel to a server, in plaintext or TLS and never one for the other, and the token of this client."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from sl_client.transport.proxy import Proxy, UnusableProxy, bypass_hint, channel_options, find_proxy
from sl_client.transport.tls import Tls, speaks_tls
from sl_common.errors import ConfigError, Refused
from sl_common.exits import is_loopback
from sl_common.names import is_token


@dataclass(frozen=True, kw_only=True, slots=True)
class Access:
    """Settings of every channel to a server: plaintext without `tls`, direct without `proxy`.

    The token goes with each call as metadata, in no frame.
    """

    tls: Tls | None = None
    token: str = field(default="", repr=False)
    proxy: Proxy | None = None
    cautions: tuple[str, ...] = ()  # for the person who starts this client

    def channel(self, server: str, options: Sequence[tuple[str, int | str]]) -> grpc.Channel:
        """Open a channel. Raises ConfigError if a file cannot be used."""
        options = (*options, *channel_options(self.proxy))
        if self.tls is None:
            return grpc.insecure_channel(server, options=options)
        return grpc.secure_channel(server, self.tls.credentials(), options=options)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The metadata of every call."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    def refusal(self, server: str) -> Refused | None:
        """Return the error for a channel that does not connect, if TLS or the lack of it is the cause.

        Another try is then pointless.
        """
        if self.tls is not None:
            fault = self.tls.fault(server)
        else:
            fault = (
                f"{server} speaks TLS: name the CA of its certificate with --ca"
                if speaks_tls(server, self.proxy)
                else None
            )
        return None if fault is None else Refused("tls", fault)


PLAINTEXT = Access()


def make_access(
    server: str,
    *,
    ca: Path | None,
    cert: Path | None,
    key: Path | None,
    token: str | None,
    insecure: bool,
    environment: Mapping[str, str] = os.environ,
) -> Access:
    """Check a person's options and return the access.

    Raises ConfigError for files that cannot be used or options that conflict.
    """
    if (cert is None) != (key is None):
        raise ConfigError("--cert and --key belong together: the certificate and its private key")
    if cert is not None and ca is None:
        raise ConfigError("--cert is for TLS, which needs the CA of the server's certificate: add --ca")
    if ca is not None and insecure:
        raise ConfigError("--insecure asks for plaintext and --ca for TLS: leave one of them out")
    proxy, cautions = _proxy(server, environment)
    if ca is None and not is_loopback(server):
        by = "" if proxy is None else f", through the proxy {proxy} of {proxy.variable}"
        around = "" if proxy is None else f"; {bypass_hint(server)}"
        if token:
            raise ConfigError(f"--token would be sent to {server} in plaintext{by}: add TLS with --ca{around}")
        if not insecure:
            raise ConfigError(
                f"--server {server} is another machine{by}: add TLS with --ca, "
                f"or --insecure if you mean plaintext{around}"
            )
    tls = None if ca is None else Tls(ca=ca, cert=cert, key=key, proxy=proxy)
    if tls is not None:
        tls.credentials()  # raises for a file that cannot be used
    if proxy is not None:
        cautions = (_proxy_caution(server, proxy, encrypted=tls is not None),)
    return Access(tls=tls, token=_token(token or ""), proxy=proxy, cautions=cautions)


def _proxy(server: str, environment: Mapping[str, str]) -> tuple[Proxy | None, tuple[str, ...]]:
    """Return the proxy that the environment names, or a caution about one that cannot be used."""
    try:
        return find_proxy(server, environment), ()
    except UnusableProxy as error:
        return None, (f"{error}; {server} is reached directly",)


def _proxy_caution(server: str, proxy: Proxy, *, encrypted: bool) -> str:
    seen = "it sees who talks, but nothing of what TLS protects"
    if not encrypted:
        seen = "it reads labels and activations, and may pose as the server (--insecure)"
    return f"{server} is reached through the proxy {proxy} of {proxy.variable}: {seen}; {bypass_hint(server)}"


def _token(text: str) -> str:
    """Return the token, read from the file after @ if there is one. No error quotes it."""
    if text.startswith("@"):
        try:
            text = Path(text[1:]).read_text(encoding="utf-8-sig").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--token {text}: {getattr(error, 'strerror', None) or 'no text'}") from error
        if not text:
            raise ConfigError("--token: the file is empty")
    if not is_token(text):
        raise ConfigError("--token: a token has printable ASCII characters without spaces")
    return text
