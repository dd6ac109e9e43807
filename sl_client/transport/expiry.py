"""Warnings of certificates that expire soon: a client's own, its authority's, and the server's."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

from sl_client.transport.tls import Tls, own_certificate
from sl_common.host.certificates import DAY_S, WARN_S, ends_of, left_in_words

_POLL_S = 1.0  # between two checks if this client has joined


def warnings_of_files(tls: Tls, now: float) -> list[str]:
    """Return warnings about this client's own files.

    Of several authorities the last to expire counts: it may replace the others.
    """
    warnings = []
    own = own_certificate(tls.cert, tls.key) if tls.cert and tls.key else None
    if own is not None and own.ends - now < WARN_S:
        warnings.append(
            f"--cert {tls.cert} {left_in_words(own.ends, now)}: sl-server certs DIR --renew gives it new dates"
        )
    with contextlib.suppress(OSError, ValueError):
        ends = max(ends_of(tls.ca.read_bytes()))
        if ends - now < WARN_S:
            warnings.append(f"--ca {tls.ca} {left_in_words(ends, now)}: this client will trust no server then")
    return warnings


def warnings_of_server(server: str, tls: Tls, now: float) -> list[str]:
    """Return warnings about the server's certificate, which a separate handshake reads."""
    seen = tls.look(server)
    if seen is None or seen[0].ends - now >= WARN_S:
        return []
    return [f"the certificate of {server} {left_in_words(seen[0].ends, now)}: its operator has to renew it"]


def watch_expiry(server: str, tls: Tls, warn: Callable[[str], None], joined: Callable[[], bool]) -> threading.Thread:
    """Warn of the files now, from a thread of the server when this client has joined, and of all of them each day."""
    for text in warnings_of_files(tls, time.time()):
        warn(text)
    thread = threading.Thread(target=_watch, args=(server, tls, warn, joined), name="expiry", daemon=True)
    thread.start()
    return thread


def _watch(server: str, tls: Tls, warn: Callable[[str], None], joined: Callable[[], bool]) -> None:
    while not joined():
        time.sleep(_POLL_S)
    warnings = warnings_of_server(server, tls, time.time())
    while True:
        for text in warnings:
            warn(text)
        time.sleep(DAY_S)
        warnings = warnings_of_files(tls, time.time()) + warnings_of_server(server, tls, time.time())
