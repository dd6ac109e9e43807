"""The command `sl-client predict`."""

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
    ServerOption,
    Token,
    reach,
    server_of,
    shard_of,
)
from sl_common.errors import ConfigError
from sl_common.host.commands import JsonOption, LogLevel, Quiet, level_of
from sl_common.host.log import Level
from sl_common.host.text import given


def predict(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            help="PNG or JPEG pictures (they need the extra images), .npy arrays, IDX files (plain or .gz).",
            metavar="[FILE]…",
        ),
    ] = None,
    server: ServerOption = "127.0.0.1:50051",
    test: Annotated[
        int | None,
        typer.Option(
            help="In place of files: this many samples of the run's test set, 0 for all, and the accuracy on them.",
            envvar="SL_TEST",
            min=0,
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            help="Samples in one request; by default and at most the run's batch size.", envvar="SL_BATCH", min=1
        ),
    ] = None,
    lower: Annotated[
        Path | None,
        typer.Option(
            help="The lower segment to use, a file of sl-client run --save-lower; needed where clients kept their own.",
            envvar="SL_LOWER",
        ),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            help="Use the head of this shard, where each client had its own: I/N, counted from 1.", envvar="SL_SHARD"
        ),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Folder that keeps the lower segments of servers, by default ~/.cache/cutlayer.", envvar="SL_CACHE"
        ),
    ] = None,
    name: Annotated[
        str,
        typer.Option("--id", help="This client's name, for a server that asks for a proof of it.", envvar="SL_ID"),
    ] = "",
    as_is: Annotated[
        bool,
        typer.Option(
            "--as-is",
            help="Take the files' numbers as they are, without a comparison with those of training.",
            envvar="SL_AS_IS",
        ),
    ] = False,
    data: DataFolder = None,
    allow: Allow = None,
    retry: Annotated[
        float, typer.Option(help="Seconds to keep trying when no server answers.", envvar="SL_RETRY", min=0)
    ] = 10.0,
    device: DeviceOption = None,
    ca: Ca = None,
    cert: ClientCertOption = None,
    key: ClientKeyOption = None,
    token: Token = None,
    insecure: Insecure = False,
    as_json: JsonOption = False,
    log_level: LogLevel = Level.INFO,
    quiet: Quiet = False,
) -> None:
    """After a run: classify files, the lower segment here and the head on the server (sl-server serve)."""
    if bool(files) == (test is not None):
        raise ConfigError("give either files, or --test N for the run's test set")
    server = server_of(server)
    name = given("--id", name)
    access = reach(server, ca=ca, cert=cert, key=key, token=token, insecure=insecure)
    index, shards = shard_of(shard)
    from sl_client.cli.prediction import connector, run_prediction
    from sl_client.inference.command import PredictCommand

    connect = connector(
        server,
        access,
        name=name,
        shard=index,
        shards=shards,
        allowed=tuple(allow or ()),
        lower=lower,
        cache=cache,
        retry_s=retry,
        device=device,
    )
    prediction = PredictCommand(
        connect,
        files=files or (),
        test=test,
        batch=batch,
        data=data,
        allowed=tuple(allow or ()),
        as_json=as_json,
        as_is=as_is,
        level=level_of(log_level, quiet=quiet),
    )
    run_prediction(prediction, server, access)
