"""`sl-client predict` after its options are read.

This module imports torch and gRPC, so the command imports it late.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from sl_client.cli.interruption import run_until_interrupted
from sl_client.inference.command import PredictCommand
from sl_client.inference.lower_cache import default_folder
from sl_client.inference.predictor import Predictor
from sl_client.transport.access import Access
from sl_client.transport.connection import Interrupted
from sl_common.exits import INTERRUPTED
from sl_common.host.devices import pick_device


def connector(
    server: str, access: Access, *, cache: Path | None, device: str | None, **options: Any
) -> Callable[[Callable[[str], None]], Predictor]:
    """Return a function that makes a Predictor which warns by its argument; `options` are those of Predictor.

    Raises ConfigError before a server is asked, if this machine has no such device.
    """
    if device is not None:
        pick_device(device, "--device")

    def connect(warn: Callable[[str], None]) -> Predictor:
        for text in access.cautions:
            warn(text)
        return Predictor(server, access=access, cache=cache or default_folder(), device=device, warn=warn, **options)

    return connect


def run_prediction(prediction: PredictCommand, server: str, access: Access) -> None:
    """Run to the end or to a signal. Raises what PredictCommand does, and typer.Exit after an interruption."""
    if access.tls is not None:
        from sl_client.transport.expiry import watch_expiry

        watch_expiry(server, access.tls, prediction.warn, lambda: True)
    try:
        run_until_interrupted(prediction)
    except Interrupted:
        raise typer.Exit(INTERRUPTED) from None
