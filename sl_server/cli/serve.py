"""The command `sl-server serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sl_common.exits import INTERRUPTED
from sl_common.host.commands import JsonOption, LogLevel, Quiet, level_of
from sl_common.host.log import Level, keep_going
from sl_server.cli.listening import listening
from sl_server.cli.options import (
    ClientCa,
    Listen,
    MetricsOption,
    Plaintext,
    RevokedOption,
    ServerCertOption,
    ServerKeyOption,
    TokensOption,
)


def serve(
    run_directory: Annotated[Path, typer.Argument(help="A run directory.", metavar="RUNDIR")],
    listen: Listen = "127.0.0.1:50051",
    metrics: MetricsOption = None,
    max_wait: Annotated[
        float,
        typer.Option(
            help="Milliseconds that a query may wait for others to go through the head with; while all clients that "
            "are connected wait for answers, none does.",
            envvar="SL_MAX_WAIT",
            min=0,
            max=10_000,
        ),
    ] = 2.0,
    max_batch: Annotated[
        int, typer.Option(help="Samples that go through the head at once.", envvar="SL_MAX_BATCH", min=1)
    ] = 256,
    device: Annotated[
        str | None,
        typer.Option(
            help="cpu, cuda, cuda:N, or auto for a GPU if there is one; by default as in the run.", envvar="SL_DEVICE"
        ),
    ] = None,
    cert: ServerCertOption = None,
    key: ServerKeyOption = None,
    client_ca: ClientCa = None,
    revoked: RevokedOption = None,
    tokens: TokensOption = None,
    insecure: Plaintext = False,
    as_json: JsonOption = False,
    log_level: LogLevel = Level.INFO,
    quiet: Quiet = False,
) -> None:
    """After a run: answer split inference. Clients compute the lower segment (sl-client predict), this server the
    head."""
    keep_going(as_json=as_json)
    files = {"cert": cert, "key": key, "client_ca": client_ca, "revoked": revoked, "tokens": tokens}
    here = listening(listen, metrics, files, insecure=insecure)
    from sl_server import api
    from sl_server.inference.microbatch import MicroBatching

    interrupted = api.serve(
        run_directory,
        listen=here.address,
        credentials=here.credentials,
        batching=MicroBatching(max_samples=max_batch, max_wait_s=max_wait / 1e3),
        metrics=here.metrics,
        device=device,
        as_json=as_json,
        level=level_of(log_level, quiet=quiet),
    )
    if interrupted:
        raise typer.Exit(INTERRUPTED)
