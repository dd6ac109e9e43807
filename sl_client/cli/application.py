"""The command `sl-client`."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sl_client.cli.options import (
    Allow,
    Ca,
    ClientCertOption,
    ClientKeyOption,
    DataFolder,
    DeviceOption,
    Insecure,
    MaxMemory,
    ServerOption,
    Threads,
    Token,
    reach,
    server_of,
    shard_of,
)
from sl_client.cli.predict import predict
from sl_common import __version__
from sl_common.errors import ConfigError, CutlayerError
from sl_common.exits import INTERRUPTED
from sl_common.host import commands
from sl_common.host.commands import JsonOption, LogLevel, Quiet, level_of
from sl_common.host.files import write_atomically
from sl_common.host.log import Level, json_line, keep_going, write_line
from sl_common.host.text import given, printable

if TYPE_CHECKING:  # torch is imported when it is needed, not for --help
    from sl_common.tensors import StateDict

app = typer.Typer(
    name="sl-client",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Split learning, the client's side: train the lower part of a network beside your own data.",
)


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
    server: ServerOption = "127.0.0.1:50051",
    name: Annotated[
        str,
        typer.Option(
            "--id",
            help="Name under which the server knows this client, also after a restart; by default c0, c1, … by shard.",
            envvar="SL_ID",
        ),
    ] = "",
    data: DataFolder = None,
    shard: Annotated[
        str | None,
        typer.Option(
            help="Ask for shard I of N, counted from 1: --shard 2/4. By default the server deals.", envvar="SL_SHARD"
        ),
    ] = None,
    allow: Allow = None,
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
    device: DeviceOption = None,
    max_memory: MaxMemory = None,
    ca: Ca = None,
    cert: ClientCertOption = None,
    key: ClientKeyOption = None,
    token: Token = None,
    insecure: Insecure = False,
    as_json: JsonOption = False,
    log_level: LogLevel = Level.INFO,
    quiet: Quiet = False,
) -> None:
    """Take part in a run, until it is over."""
    keep_going(as_json=as_json)
    name = given("--id", name)
    server = server_of(server)
    access = reach(server, ca=ca, cert=cert, key=key, token=token, insecure=insecure)
    index, shards = shard_of(shard)
    if save_lower is not None:
        _check_place(save_lower)
    from sl_client.device.pages import use_one_arena

    use_one_arena()
    from sl_client.console.show import make_client_console
    from sl_client.device.limits import DeviceLimits, parse_size
    from sl_client.training.runner import Interrupted, Runner, run_until_interrupted
    from sl_client.transport.stream import GrpcCarrier
    from sl_common.host.devices import pick_device

    show = make_client_console(as_json=as_json, level=level_of(log_level, quiet=quiet))
    for text in access.cautions:
        show.warn(text)
    if device is not None:  # before a server is asked
        pick_device(device, "--device")
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
        device=device,
        limits=DeviceLimits(threads=threads, memory=None if max_memory is None else parse_size(max_memory)),
    )
    show.start()
    if access.tls is not None:
        from sl_client.transport.expiry import watch_expiry

        watch_expiry(server, access.tls, show.warn, lambda: runner.seat is not None)
    try:
        bye = run_until_interrupted(runner)
    except Interrupted:
        show.say("stopped", "stopped" if runner.seat is None else "stopped; the server was told")
        raise typer.Exit(INTERRUPTED) from None
    finally:
        show.stop()
        if save_lower is not None and runner.seat is not None:
            _save(runner.seat.bank.get("lower").state(), save_lower)
    runner.leave_state(finished=bye.finished)
    if not bye.finished:
        raise CutlayerError(f"the run ended before its last round: {printable(bye.reason)}")


def _check_place(path: Path) -> None:
    """Raise ConfigError where a file could not be written at the end, with the work of the whole run in it."""
    try:
        if path.is_dir():
            raise ConfigError(f"--save-lower {path}: is a folder: name a file")
        if not path.parent.is_dir():
            raise ConfigError(f"--save-lower {path}: there is no folder {path.parent}")
    except OSError as error:  # a name that is too long, a folder that nobody may look into
        raise ConfigError(f"--save-lower {path}: {error.strerror or error}") from error
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ConfigError(f"--save-lower {path}: nothing can be written in {path.parent}")


def _save(lower: StateDict, path: Path) -> None:
    from safetensors.torch import save

    try:
        write_atomically(path, save({name: tensor.contiguous() for name, tensor in lower.items()}))
    except OSError as error:
        raise ConfigError(f"--save-lower {path}: {error.strerror or error}") from error


app.command()(predict)


@app.command()
def doctor(
    server: ServerOption = "127.0.0.1:50051",
    ca: Ca = None,
    cert: ClientCertOption = None,
    key: ClientKeyOption = None,
    token: Token = None,
    insecure: Insecure = False,
    as_json: JsonOption = False,
) -> None:
    """Can this device take part? Reach, versions, certificates, round trip and bandwidth, and what is installed here."""
    server = server_of(server)
    access = reach(server, ca=ca, cert=cert, key=key, token=token, insecure=insecure)
    from sl_client.transport.doctor import examine

    examine(server, access, as_json=as_json)


@app.command()
def digest(
    name: Annotated[
        str, typer.Argument(help="A data set: digits, fashion-mnist, or package.module:function.", metavar="DATA")
    ],
    data: DataFolder = None,
    allow: Allow = None,
    as_json: JsonOption = False,
) -> None:
    """Print what tells this device's copy of a data set from another: for `data.digest` in a run's configuration."""
    from sl_client.data import load_data
    from sl_client.data.identity import data_set_of

    found = data_set_of(load_data(name, data, tuple(allow or ())), own=False)
    if as_json:
        fields = {"train": found.train, "test": found.test, "inputs": str(found.inputs), "digest": found.digest}
        write_line(json_line("digest", "info", fields))
    else:
        typer.echo(f"{found.train} training and {found.test} test samples, {found.inputs}")
        typer.echo(f'data.digest = "{found.digest}"')


def main() -> None:
    """Entry point."""
    commands.run_command(app)
