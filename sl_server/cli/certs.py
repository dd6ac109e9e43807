"""The command `sl-server certs`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sl_common.addresses import USUAL_PORT, joined
from sl_common.errors import ConfigError
from sl_common.host.commands import JsonOption
from sl_common.host.extras import how_to_install
from sl_common.host.log import write_line
from sl_common.host.text import given

if TYPE_CHECKING:
    from sl_server.security.certificates import CertificateFolder, WrittenFile


def certs(
    folder: Annotated[Path, typer.Argument(help="Where to write; it is made if need be.", metavar="DIR")],
    clients: Annotated[
        int | None,
        typer.Option(
            help="How many clients: c0, c1, … as the server would call them; by default as many as --name names.",
            envvar="SL_CLIENTS",
            min=0,
        ),
    ] = None,
    names: Annotated[
        list[str] | None,
        typer.Option("--name", help="A client's id, instead of c0, c1, …. May be repeated.", envvar="SL_NAME"),
    ] = None,
    hosts: Annotated[
        list[str] | None,
        typer.Option(
            "--host",
            help="A name or address by which clients reach the server, beside localhost and this machine's name. May "
            "be repeated.",
            envvar="SL_HOST",
        ),
    ] = None,
    days: Annotated[
        int,
        typer.Option(help="How long certificates hold; the CA holds ten years.", envvar="SL_DAYS", min=1, max=36500),
    ] = 365,
    add: Annotated[
        bool,
        typer.Option(
            "--add",
            help="Use the CA that is in DIR already: for further clients, or a new server certificate after the old "
            "one was moved away.",
            envvar="SL_ADD",
        ),
    ] = False,
    revoke: Annotated[
        list[str] | None,
        typer.Option(
            "--revoke",
            help="Lock this client's certificate out: write it into DIR/revoked.pem, which a server with --revoked "
            "reads again. May be repeated.",
            envvar="SL_REVOKE",
        ),
    ] = None,
    renew: Annotated[
        list[str] | None,
        typer.Option(
            "--renew",
            help="Give this certificate in DIR (a client's, or server) new dates; its key, names and role stay, so "
            "that one file changes. May be repeated.",
            envvar="SL_RENEW",
        ),
    ] = None,
    renew_ca: Annotated[
        bool,
        typer.Option(
            "--renew-ca",
            help="Begin to replace the CA: DIR/ca.pem then holds the new one and the old one, which both are trusted "
            "until --drop-ca.",
            envvar="SL_RENEW_CA",
        ),
    ] = False,
    drop_ca: Annotated[
        bool,
        typer.Option(
            "--drop-ca",
            help="End it, when all certificates in DIR are renewed: the old CA is dropped.",
            envvar="SL_DROP_CA",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make certificates for TLS: a CA, the server's, and one for each client whose name in it is the client's id."""
    wanted = _client_names(clients, names or [])
    here = _folder(folder)
    steps = {"--revoke": revoke, "--renew": renew, "--renew-ca": renew_ca, "--drop-ca": drop_ca}
    match _only_step([option for option, value in steps.items() if value], beside=bool(wanted or hosts or add)):
        case None:
            _make(here, wanted, hosts or [], days, add=add, as_json=as_json)
        case "--revoke":
            _revoke(here, revoke or [], as_json=as_json)
        case _:
            _renew(here, renew or [], days, new_ca=renew_ca, drop=drop_ca, as_json=as_json)


def _client_names(clients: int | None, names: list[str]) -> list[str]:
    wanted = [given("--name", name) for name in names] or [f"c{number}" for number in range(clients or 0)]
    if clients is not None and clients != len(wanted):
        raise ConfigError(f"--clients {clients} and {len(wanted)} times --name: leave --clients out, or name them all")
    return wanted


def _folder(path: Path) -> CertificateFolder:
    try:
        from sl_server.security.certificates import CertificateFolder
    except ModuleNotFoundError as error:
        raise ConfigError(f"sl-server certs needs the package cryptography: {how_to_install('certs')}") from error
    return CertificateFolder(path)


def _only_step(chosen: list[str], *, beside: bool) -> str | None:
    """Return the option that changes a folder, which goes alone; None where certificates are to be made."""
    if chosen and (beside or len(chosen) > 1):
        others = "--clients, --name, --host, --add" + "".join(f", {one}" for one in chosen[1:])
        raise ConfigError(f"{chosen[0]} goes alone: without {others}")
    return chosen[0] if chosen else None


def _make(
    here: CertificateFolder, clients: list[str], hosts: list[str], days: int, *, add: bool, as_json: bool
) -> None:
    written = list(here.fill(clients, hosts, days, add=add))[::-1]  # the authority first
    _print_files("files", written, as_json=as_json)
    if as_json:
        return
    ca, client = here.cert("ca"), clients[0] if clients else "CLIENT"
    server = joined((hosts or ["HOST"])[0], USUAL_PORT)
    typer.echo(
        f"\nsl-server run RUN.toml --listen 0.0.0.0:50051 --cert {here.cert('server')} --key {here.key('server')} "
        f"--client-ca {ca} \\\n    --revoked {here.revoked}\n"
        f"sl-client run --server {server} --ca {ca} --cert {here.cert(client)} --key {here.key(client)}"
    )


def _renew(here: CertificateFolder, names: list[str], days: int, *, new_ca: bool, drop: bool, as_json: bool) -> None:
    from sl_server.security import renewal

    written = (
        renewal.renew_ca(here, days) if new_ca else renewal.drop_ca(here) if drop else renewal.renew(here, names, days)
    )
    _print_files("renewed", written, as_json=as_json)
    if new_ca and not as_json:
        typer.echo(f"then: sl-server certs {here.path} --renew server --renew CLIENT …, and at last --drop-ca")


def _revoke(here: CertificateFolder, clients: list[str], *, as_json: bool) -> None:
    written = here.revoke(clients)
    if as_json:
        _print_files("revoked", written, as_json=True)
        return
    for one in written:
        typer.echo(f"{one.path}: {one.what} is revoked")
    typer.echo(
        f"in {here.revoked}, for the server's --revoked; move the client's files away to make it new ones with --add"
    )


def _print_files(key: str, written: list[WrittenFile], *, as_json: bool) -> None:
    if as_json:
        write_line(json.dumps({key: [{"path": str(one.path), "what": one.what} for one in written]}))
        return
    width = max(len(str(one.path)) for one in written)
    for one in written:
        typer.echo(f"{one.path!s:<{width}}  {one.what}")
