"""The rules by which a stream may speak for a client. Pure: the shell verifies certificates and tokens."""

from __future__ import annotations

from dataclasses import dataclass

from sl_common.errors import Refused
from sl_common.names import is_name

UNPROVEN = "this server takes a client's own token, and what came is not that: a wrong name, a wrong token, or none"


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamIdentity:
    """The names that the transport of a stream proves for its client; None where the server does not ask.

    `certificate`: the names in its verified certificate, the common name first.
    `bearer`: the names that its token belongs to, () if to none.
    `revoked`: the certificate is on the authority's list.
    """

    certificate: tuple[str, ...] | None = None
    bearer: tuple[str, ...] | None = None
    revoked: bool = False


def admit(client: str, identity: StreamIdentity) -> str:
    """Return the name of a client that calls itself `client`; if that is empty, the name that it proves, or "".

    Raises Refused, with the same text for an unknown name and for a wrong token.
    """
    if identity.revoked:
        raise Refused("revoked", "this client's certificate was revoked")
    shared = [name for name in identity.certificate or () if name in (identity.bearer or ())]
    client = client or next(iter(shared), "")
    if identity.certificate is not None:
        client = _certified(client, identity.certificate)
    if identity.bearer is None:
        return client
    if not identity.bearer or client not in ("", *identity.bearer):
        raise Refused("identity", UNPROVEN)
    return client or identity.bearer[0]


def _certified(client: str, names: tuple[str, ...]) -> str:
    if not names:
        raise Refused(
            "identity", "this client's certificate has no name: no common name, no DNS and no URI alternative"
        )
    if not client and (not names[0] or not is_name(names[0])):
        raise Refused("identity", f"this client's certificate is made for {names[0][:80]!r}, which is no client's name")
    if client and client not in names:
        whose = " or ".join(repr(name) for name in names)
        raise Refused("identity", f"this client calls itself {client!r}, its certificate is that of {whose}")
    return client or names[0]
