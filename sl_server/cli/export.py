"""The command `sl-server export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    run_directory: Annotated[Path, typer.Argument(help="A run directory.", metavar="RUNDIR")],
    to: Annotated[
        Path | None,
        typer.Option("--to", "-o", help="File to write; by default RUNDIR/model.safetensors.", envvar="SL_TO"),
    ] = None,
    lower: Annotated[
        Path | None,
        typer.Option(
            help="The lower segment that a client wrote (sl-client run --save-lower FILE), where lower segments are "
            "private.",
            envvar="SL_LOWER",
        ),
    ] = None,
    head: Annotated[
        Path | None,
        typer.Option(
            help="The head to take, where every client has its own (head-SHARD.safetensors).", envvar="SL_HEAD"
        ),
    ] = None,
) -> None:
    """Join lower segment and head into the state dict of the unsplit network, as safetensors."""
    from sl_server import api

    written, tensors = api.export(run_directory, to=to, lower=lower, head=head)
    typer.echo(
        f"wrote {written}: {tensors} tensors; load with safetensors.torch.load_file and "
        f"nn.Sequential(OrderedDict(blocks))"
    )
