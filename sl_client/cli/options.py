"""Options that several commands of `sl-client` share, and their checks. Each option is also an environment variable."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sl_common.addresses import address_to_reach
from sl_common.errors import ConfigError
from sl_common.host.descriptors import Room, make_room

if TYPE_CHECKING:  # grpc is imported when it is needed, not for --help
    from sl_client.transport.access import Access

ServerOption = Annotated[str, typer.Option(help="The server's HOST:PORT; [::1]:PORT for IPv6.", envvar="SL_SERVER")]
Ca = Annotated[
    Path | None,
    typer.Option(
        help="Use TLS and only TLS: the CA of the server's certificate, in PEM form.",
        envvar="SL_CA",
    ),
]
ClientCertOption = Annotated[
    Path | None,
    typer.Option(
        help="This client's certificate in PEM form, for a server that asks for one; its name is this client's id.",
        envvar="SL_CERT",
    ),
]
ClientKeyOption = Annotated[
    Path | None, typer.Option(help="The private key of --cert, without a passphrase.", envvar="SL_KEY")
]
Token = Annotated[
    str | None,
    typer.Option(
        help="This client's token, for a server that asks for one. @FILE or SL_TOKEN hide it from the list of "
        "processes. Only over TLS or on this machine.",
        metavar="TOKEN|@FILE",
        envvar="SL_TOKEN",
    ),
]
Insecure = Annotated[
    bool,
    typer.Option(
        "--insecure",
        help="Use plaintext to another machine: everyone on the way can read labels and activations, and pose as the "
        "server.",
        envvar="SL_INSECURE",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        help="Threads for a computation, in place of the run's number; more than one may change the last bits.",
        envvar="SL_THREADS",
        min=1,
    ),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        help="Where to compute the lower segment: cpu, cuda, cuda:N, or auto for a GPU if there is one; "
        "by default as the run says (client.device, auto).",
        envvar="SL_DEVICE",
    ),
]
MaxMemory = Annotated[
    str | None,
    typer.Option(
        help="Refuse a run for which this process would need more memory than this: 512M, 1.5G.",
        metavar="SIZE",
        envvar="SL_MAX_MEMORY",
    ),
]
DataFolder = Annotated[Path | None, typer.Option(help="Folder of data sets. digits needs none.", envvar="SL_DATA")]
Allow = Annotated[
    list[str] | None,
    typer.Option(
        help="Package from which your own model or data function may be imported. May be repeated.",
        envvar="SL_ALLOW",
    ),
]


ROOM = Room(least=24, wanted=64, what="this client")  # file descriptors: 12 while it trains, besides snapshots and data


_SHARD = re.compile(r"([0-9]{1,9})/([0-9]{1,9})")


def server_of(text: str) -> str:
    """Return the address in --server. Raises ConfigError."""
    return address_to_reach(text, "--server")


def reach(
    server: str, *, ca: Path | None, cert: Path | None, key: Path | None, token: str | None, insecure: bool
) -> Access:
    """Return the access to an address from `server_of`. Raises ConfigError as `make_access` does."""
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # before grpc is imported; our own errors report what fails
    make_room(ROOM)
    from sl_client.transport.access import make_access

    return make_access(server, ca=ca, cert=cert, key=key, token=token, insecure=insecure)


def shard_of(text: str | None) -> tuple[int | None, int | None]:
    """Return (shard, shards) for I/N, the shard counted from 0; (None, None) without. Raises ConfigError."""
    if text is None:
        return None, None
    found = _SHARD.fullmatch(text.strip())
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise ConfigError(f"--shard {text[:80]!r}: write it as I/N with I from 1 to N")
    return int(found[1]) - 1, int(found[2])


def check_place(path: Path) -> None:
    """Raise ConfigError if --save-lower cannot be written: it is written at the end, with the work of the whole run."""
    try:
        if path.is_dir():
            raise ConfigError(f"--save-lower {path}: is a folder: name a file")
        if not path.parent.is_dir():
            raise ConfigError(f"--save-lower {path}: there is no folder {path.parent}")
    except OSError as error:  # a name that is too long, a folder that may not be looked into
        raise ConfigError(f"--save-lower {path}: {error.strerror or error}") from error
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ConfigError(f"--save-lower {path}: nothing can be written in {path.parent}")
