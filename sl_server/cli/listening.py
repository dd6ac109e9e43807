"""Options of a server that listens, checked and turned into values: addresses and credentials."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sl_server.cli.options import host_port

if TYPE_CHECKING:  # modules that import gRPC are imported when needed, not for --help
    from sl_server.security.credentials import Credentials


@dataclass(frozen=True, kw_only=True, slots=True)
class Listening:
    """A server's addresses, and the credentials that clients must have."""

    address: str  # HOST:PORT
    metrics: tuple[str, int] | None
    credentials: Credentials


def listening(listen: str, metrics: str | None, files: Mapping[str, Path | None], *, insecure: bool) -> Listening:
    """Check the addresses and the files of a server's options. Raises ConfigError.

    `files`: paths by option: cert, key, client_ca, revoked, tokens.
    """
    host, port = host_port(listen, "--listen")
    at = host_port(metrics, "--metrics") if metrics else None
    from sl_server.security.credentials import make_credentials

    credentials = make_credentials(f"{host}:{port}", **files, insecure=insecure)
    return Listening(address=f"{host}:{port}", metrics=at, credentials=credentials)
