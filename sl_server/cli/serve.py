"""The command `sl-server serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sl_common.errors import CutlayerError
from sl_common.exits import INTERRUPTED
from sl_common.host.commands import JsonOption, LogLevel, Quiet, level_of
from sl_common.host.log import Level, keep_going, name_run
from sl_server.cli.options import (
    ClientCa,
    Listen,
    MetricsOption,
    Plaintext,
    RevokedOption,
    ServerCertOption,
    ServerKeyOption,
    TokensOption,
    host_port,
)


def serve(
    run_directory: Annotated[Path, typer.Argument(help="A run directory.", metavar="RUNDIR")],
    listen: Listen = "127.0.0.1:50051",
    metrics: MetricsOption = None,
    max_wait: Annotated[
        float,
        typer.Option(
            help="Milliseconds that a query may wait for others to go through the head with; while all clients that are "
            "connected wait for answers, none does.",
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
    """After a run: answer split inference. Clients compute the lower segment (sl-client predict), this server the head."""
    keep_going(as_json=as_json)
    host, port = host_port(listen, "--listen")
    at = host_port(metrics, "--metrics") if metrics else None
    from sl_server.security.credentials import make_door

    papers = {"cert": cert, "key": key, "client_ca": client_ca, "revoked": revoked, "tokens": tokens}
    door = make_door(f"{host}:{port}", **papers, insecure=insecure)
    from sl_common.host.devices import pick_device
    from sl_server.console.show import ServerConsole
    from sl_server.inference.microbatch import MicroBatching
    from sl_server.inference.process import serve_trained
    from sl_server.storage.trained import config_of, read_trained_run
    from sl_server.telemetry.ledger import Ledger

    ledger = Ledger()
    show = ServerConsole(ledger, 0, as_json=as_json, level=level_of(log_level, quiet=quiet))
    config = config_of(run_directory)
    name_run(config.run.name)
    asked = device or config.server.device
    picked = pick_device(asked, "server.device" if device is None else "--device", show.warn)
    trained = read_trained_run(run_directory, show.warn, picked)
    failure, interrupted = serve_trained(
        trained,
        MicroBatching(max_samples=max_batch, max_wait_s=max_wait / 1e3),
        listen=f"{host}:{port}",
        door=door,
        metrics=at,
        show=show,
        device=(picked, asked),
        ledger=ledger,
    )
    if failure is not None:
        raise CutlayerError(failure)
    if interrupted:
        raise typer.Exit(INTERRUPTED)
