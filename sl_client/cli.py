"""The command `sl-client`."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console

from sl_common import __version__
from sl_common.errors import ConfigError, CutlayerError
from sl_common.exits import INTERRUPTED, exit_code

if TYPE_CHECKING:  # torch is imported when it is needed, not for --help
    from sl_client.access import Access
    from sl_common.tensors import State

app = typer.Typer(
    name="sl-client",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Split learning, the client's side: train the lower part of a network beside your own data.",
)

Server = Annotated[str, typer.Option(help="The server's HOST:PORT.", envvar="SL_SERVER")]
Ca = Annotated[
    Path | None,
    typer.Option(
        help="Speak TLS, and only TLS: the CA of the server's certificate, in PEM form.",
        envvar="SL_CA",
    ),
]
Cert = Annotated[
    Path | None,
    typer.Option(
        help="This client's certificate in PEM form, for a server that asks for one; its name is this client's id.",
        envvar="SL_CERT",
    ),
]
Key = Annotated[Path | None, typer.Option(help="The private key of --cert, without a passphrase.", envvar="SL_KEY")]
Token = Annotated[
    str | None,
    typer.Option(
        help="This client's token, for a server that asks for one; better @FILE or SL_TOKEN, which no list of processes "
        "shows. Only over TLS or on this machine.",
        metavar="TOKEN|@FILE",
        envvar="SL_TOKEN",
    ),
]
Insecure = Annotated[
    bool,
    typer.Option(
        "--insecure",
        help="Speak plaintext beyond this machine: whoever is on the way reads labels and activations, and may pose as the "
        "server.",
        envvar="SL_INSECURE",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        help="Threads for a computation, instead of as many as the run says; more than one may change the last bits.",
        envvar="SL_THREADS",
        min=1,
    ),
]
MaxMemory = Annotated[
    str | None,
    typer.Option(
        help="Take no part in a run for which this process would need more memory than this: 512M, 1.5G.",
        metavar="SIZE",
        envvar="SL_MAX_MEMORY",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line instead of text.", envvar="SL_JSON")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cutlayer {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options that every command has."""


@app.command()
def run(
    server: Server = "127.0.0.1:50051",
    name: Annotated[
        str,
        typer.Option(
            "--id",
            help="Name under which the server knows this client, also after a restart; by default c0, c1, … by shard.",
            envvar="SL_ID",
        ),
    ] = "",
    data: Annotated[Path | None, typer.Option(help="Where data sets lie. digits needs none.", envvar="SL_DATA")] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            help="Ask for shard I of N, counted from 1: --shard 2/4. By default the server deals.", envvar="SL_SHARD"
        ),
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            help="Package that a model or data function of your own may be imported from. May be repeated.",
            envvar="SL_ALLOW",
        ),
    ] = None,
    retry: Annotated[
        float, typer.Option(help="Seconds to go on trying when no server answers.", envvar="SL_RETRY", min=0)
    ] = 60.0,
    state: Annotated[
        Path | None,
        typer.Option(
            help="Folder for snapshots, so that this client can go on after its own process was killed.",
            envvar="SL_STATE",
        ),
    ] = None,
    save_lower: Annotated[
        Path | None,
        typer.Option(help="Write this client's lower segment here at the end (safetensors).", envvar="SL_SAVE_LOWER"),
    ] = None,
    threads: Threads = None,
    max_memory: MaxMemory = None,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    token: Token = None,
    insecure: Insecure = False,
    as_json: Json = False,
) -> None:
    """Take part in a run, until it is over."""
    access = reach(server, ca=ca, cert=cert, key=key, token=token, insecure=insecure)
    index, shards = _shard(shard)
    if save_lower is not None and not save_lower.parent.is_dir():
        raise ConfigError(f"--save-lower {save_lower}: there is no folder {save_lower.parent}")
    from sl_client.carrier import GrpcCarrier
    from sl_client.device import Limits, parse_size
    from sl_client.runner import Interrupted, Runner, run_until_interrupted
    from sl_client.show import make_show

    show = make_show(as_json=as_json)
    runner = Runner(
        server,
        name=name,
        shard=index,
        shards=shards,
        data=data,
        allowed=tuple(allow or ()),
        retry_s=retry,
        show=show,
        connect=partial(GrpcCarrier, access=access),
        state=state,
        limits=Limits(threads=threads, memory=None if max_memory is None else parse_size(max_memory)),
    )
    try:
        run_until_interrupted(runner)
    except Interrupted:
        show.say("stopped", "stopped" if runner.seat is None else "stopped; the server was told")
        raise typer.Exit(INTERRUPTED) from None
    finally:
        show.stop()
        if save_lower is not None and runner.seat is not None:
            _save(runner.seat.bank.get("lower").state(), save_lower)


def _save(lower: State, path: Path) -> None:
    from safetensors.torch import save

    try:
        path.write_bytes(save({name: tensor.contiguous() for name, tensor in lower.items()}))
    except OSError as error:
        raise ConfigError(f"--save-lower {path}: {error.strerror or error}") from error


@app.command()
def doctor(
    server: Server = "127.0.0.1:50051",
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    token: Token = None,
    insecure: Insecure = False,
    as_json: Json = False,
) -> None:
    """Can this device take part? Reach, versions, certificates, round trip and bandwidth, and what is installed here."""
    access = reach(server, ca=ca, cert=cert, key=key, token=token, insecure=insecure)
    from sl_client.doctor import examine

    examine(server, access, as_json=as_json)


def reach(
    server: str, *, ca: Path | None, cert: Path | None, key: Path | None, token: str | None, insecure: bool
) -> Access:
    """Raises ConfigError for an address that is none, and for what make_access does not take."""
    host, colon, port = server.rpartition(":")
    if not server.startswith("unix:") and (not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536):
        raise ConfigError(f"--server {server!r}: write it as HOST:PORT")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # before grpc is imported; what fails is said in our words
    from sl_client.access import make_access

    return make_access(server, ca=ca, cert=cert, key=key, token=token, insecure=insecure)


def _shard(text: str | None) -> tuple[int | None, int | None]:
    if text is None:
        return None, None
    index, slash, count = text.partition("/")
    if not slash or not index.isdigit() or not count.isdigit() or not 1 <= int(index) <= int(count):
        raise ConfigError(f"--shard {text!r}: write it as I/N with I from 1 to N")
    return int(index) - 1, int(count)


def fail(error: CutlayerError) -> NoReturn:
    """Say what is wrong on stderr and exit with its code."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"error: {error}", markup=False, style="red")
    raise SystemExit(exit_code(error))


def main() -> None:
    """Entry point."""
    sys.path.append(str(Path.cwd()))  # where a user's own model or data lies
    try:
        app()
    except CutlayerError as error:
        fail(error)
