"""The command `sl-client` and its commands run, doctor and digest; predict has a module of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
    check_place,
    reach,
    server_of,
    shard_of,
)
from sl_client.cli.predict import predict
from sl_common.host import commands
from sl_common.host.commands import JsonOption, LogLevel, Quiet, level_of
from sl_common.host.log import Level, json_line, keep_going, write_line
from sl_common.host.text import given

app = commands.make_app(
    "sl-client", "Split learning, the client's side: train the lower part of a network beside your own data."
)


@app.command()
def run(
    server: ServerOption = "127.0.0.1:50051",
    name: Annotated[
        str,
        typer.Option(
            "--id",
            help="This client's name at the server, also after a restart; by default c0, c1, … by shard.",
            envvar="SL_ID",
        ),
    ] = "",
    data: DataFolder = None,
    shard: Annotated[
        str | None,
        typer.Option(
            help="Ask for shard I of N, counted from 1: --shard 2/4. By default the server assigns one.",
            envvar="SL_SHARD",
        ),
    ] = None,
    allow: Allow = None,
    retry: Annotated[
        float, typer.Option(help="Seconds to keep trying when no server answers.", envvar="SL_RETRY", min=0)
    ] = 60.0,
    state: Annotated[
        Path | None,
        typer.Option(
            help="Folder for snapshots, from which a new process of this client continues after a crash.",
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
        check_place(save_lower)
    from sl_client.device.pages import use_one_arena

    use_one_arena()
    from sl_client.cli.participation import owner_limits, require_device, take_part
    from sl_client.console.show import make_client_console

    show = make_client_console(as_json=as_json, level=level_of(log_level, quiet=quiet))
    for text in access.cautions:
        show.warn(text)
    require_device(device)
    take_part(
        server,
        access,
        show,
        save_lower,
        name=name,
        shard=index,
        shards=shards,
        data=data,
        allowed=tuple(allow or ()),
        retry_s=retry,
        state=state,
        device=device,
        limits=owner_limits(threads, max_memory),
    )


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
    """Check this device and its way to a server: versions, certificates, round trip, bandwidth, installed packages."""
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
    """Print the digest of this device's copy of a data set, for `data.digest` in a run's configuration."""
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
    """Run the command line; the entry point of `sl-client`."""
    commands.run_command(app)
