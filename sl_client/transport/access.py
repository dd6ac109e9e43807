"""How a client reaches a server and shows who it is: plaintext or TLS, never the one for the other, and its token."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from sl_client.transport.proxy import Proxy, Unusable, channel_options, find_proxy, ways_around
from sl_client.transport.tls import Tls, speaks_tls
from sl_common.errors import ConfigError, Refused
from sl_common.exits import is_loopback
from sl_common.names import is_token


@dataclass(frozen=True, kw_only=True, slots=True)
class Access:
    """Without `tls` in plaintext, without `proxy` directly. The token goes with each call as metadata, in no frame."""

    tls: Tls | None = None
    token: str = field(default="", repr=False)
    proxy: Proxy | None = None
    cautions: tuple[str, ...] = ()  # for whoever starts this client

    def channel(self, server: str, options: Sequence[tuple[str, int | str]]) -> grpc.Channel:
        """A new one. Raises ConfigError if a file cannot be used."""
        options = (*options, *channel_options(self.proxy))
        if self.tls is None:
            return grpc.insecure_channel(server, options=options)
        return grpc.secure_channel(server, self.tls.credentials(), options=options)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Of every call."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    def refusal(self, server: str) -> Refused | None:
        """Why no channel to a server comes about, if TLS or the lack of it is the reason: then trying again is pointless."""
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
    """From a person's options. Raises ConfigError for files that cannot be used and options that do not go together."""
    if (cert is None) != (key is None):
        raise ConfigError("--cert and --key belong together: the certificate and its private key")
    if cert is not None and ca is None:
        raise ConfigError("--cert is for TLS, which needs the CA of the server's certificate: add --ca")
    if ca is not None and insecure:
        raise ConfigError("--insecure asks for plaintext and --ca for TLS: leave one of them out")
    proxy, cautions = _proxy(server, environment)
    if ca is None and not is_loopback(server):
        by = "" if proxy is None else f", through the proxy {proxy} of {proxy.variable}"
        around = "" if proxy is None else f"; {ways_around(server)}"
        if token:
            raise ConfigError(f"--token would be sent to {server} in plaintext{by}: add TLS with --ca{around}")
        if not insecure:
            raise ConfigError(
                f"--server {server} is another machine{by}: add TLS with --ca, or --insecure if you mean plaintext{around}"
            )
    tls = None if ca is None else Tls(ca=ca, cert=cert, key=key, proxy=proxy)
    if tls is not None:
        tls.credentials()  # what is wrong with the files is said at once
    if proxy is not None:
        cautions = (_routed(server, proxy, encrypted=tls is not None),)
    return Access(tls=tls, token=_token(token or ""), proxy=proxy, cautions=cautions)


def _proxy(server: str, environment: Mapping[str, str]) -> tuple[Proxy | None, tuple[str, ...]]:
    """The proxy that the environment asks for, and what to say of one that cannot be used."""
    try:
        return find_proxy(server, environment), ()
    except Unusable as error:
        return None, (f"{error}; {server} is reached directly",)


def _routed(server: str, proxy: Proxy, *, encrypted: bool) -> str:
    seen = "it sees who talks, but nothing of what TLS protects"
    if not encrypted:
        seen = "it reads labels and activations, and may pose as the server (--insecure)"
    return f"{server} is reached through the proxy {proxy} of {proxy.variable}: {seen}; {ways_around(server)}"


def _token(text: str) -> str:
    """A token, or what is in the file after @. Its text is in no error."""
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
