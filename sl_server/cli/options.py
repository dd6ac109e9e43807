"""Options that several commands of `sl-server` share. Each is an environment variable too."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from sl_common.addresses import USUAL_PORT, address_to_listen

SET_VARIABLE = "SL_SET"
USUAL_METRICS = 9464


def _overrides(context: typer.Context, values: list[str] | None) -> list[str]:
    """Split the items of SL_SET by our own rule: click splits at every space, also within a value.

    Without any, the list is empty: Typer 0.12 takes the length of what a callback returns.
    """
    source = context.get_parameter_source("overrides")
    if source is None or source.name != "ENVIRONMENT":
        return values or []
    from sl_common.config.overrides import split_overrides

    return split_overrides(os.environ.get(SET_VARIABLE, ""))


ConfigFile = Annotated[
    Path, typer.Argument(help="The run's configuration, a TOML file (or a run's config.json).", metavar="RUN.toml")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Override a key of the file: --set run.rounds=3 --set codec.up=float8. May be repeated; in the "
        "variable, items are separated by spaces, and a value with spaces stands in quotes: run.rounds=3 "
        "run.name='my run'.",
        envvar=SET_VARIABLE,
        callback=_overrides,
    ),
]
ServerCertOption = Annotated[
    Path | None,
    typer.Option(
        help="Turn TLS on: this server's certificate in PEM form (sl-server certs makes one). Read again when it "
        "changes.",
        envvar="SL_CERT",
    ),
]
ServerKeyOption = Annotated[
    Path | None, typer.Option(help="The private key of --cert, without a passphrase.", envvar="SL_KEY")
]
ClientCa = Annotated[
    Path | None,
    typer.Option(
        "--client-ca",
        help="Make TLS mutual: a client must show a certificate that this CA signed, and goes by the name in it.",
        envvar="SL_CLIENT_CA",
    ),
]
RevokedOption = Annotated[
    Path | None,
    typer.Option(
        help="A list of revoked certificates (a CRL in PEM form) of --client-ca: whoever is on it is locked out, at "
        "once. Read again when it changes; sl-server certs DIR --revoke CLIENT writes it.",
        envvar="SL_REVOKED",
    ),
]
TokensOption = Annotated[
    Path | None,
    typer.Option(
        help='Ask clients for tokens: a file with a line id = "token" for each. Read again when it changes. Needs TLS '
        "(--cert and --key) unless the server listens on this machine alone, where plaintext will do.",
        envvar="SL_TOKENS",
    ),
]
TensorBoardOption = Annotated[
    bool,
    typer.Option(
        "--tensorboard",
        help="Also write the columns of metrics.csv for TensorBoard, into the run directory. Needs the extra "
        "tensorboard.",
        envvar="SL_TENSORBOARD",
    ),
]
Listen = Annotated[
    str,
    typer.Option(
        help="Where clients connect: HOST:PORT, [::1]:PORT for IPv6; port 0 takes a free one.", envvar="SL_LISTEN"
    ),
]
MetricsOption = Annotated[
    str | None, typer.Option(help="Prometheus metrics at HOST:PORT (9464 is usual).", envvar="SL_METRICS")
]
Plaintext = Annotated[
    bool,
    typer.Option(
        "--insecure",
        help="Listen in plaintext beyond this machine: whoever is on the way reads labels and activations, and "
        "anybody may join.",
        envvar="SL_INSECURE",
    ),
]


def host_port(text: str, option: str) -> tuple[str, int]:
    """Parse HOST:PORT or PORT; an IPv6 address keeps its brackets. Raises ConfigError."""
    address = address_to_listen(text, option, USUAL_METRICS if option == "--metrics" else USUAL_PORT)
    return address.bracketed, address.port
