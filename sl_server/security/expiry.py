"""Expiry of a server's certificates: a metric, and warnings at start and daily from two weeks before the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial

from prometheus_client import CollectorRegistry, Gauge

from sl_common.host.certificates import DAY_S, WARN_S, left_in_words
from sl_server.security.tls import Certificates

EXPIRY_LOOK_S = 60.0
WHICH = {
    "server": ("--cert", "sl-server certs DIR --renew server gives it new dates, which are read without a restart"),
    "client_ca": ("--client-ca", "sl-server certs DIR --renew-ca makes another authority"),
}


def expose(registry: CollectorRegistry, certificates: Certificates | None) -> None:
    """Register the metric; it is read when scraped."""
    text = "When a certificate of this server ends, of several in its file the first; +Inf without one"
    gauge = Gauge("sl_certificate_expiry_timestamp_seconds", text, ("which",), registry=registry)
    for which in WHICH:
        gauge.labels(which).set(float("inf"))
        if certificates is not None:
            gauge.labels(which).set_function(partial(_end, certificates, which))


def _end(certificates: Certificates, which: str) -> float:
    return certificates.ends.get(which, float("inf"))


class Expiry:
    """Warns of certificates that are about to expire."""

    def __init__(
        self, certificates: Certificates | None, warn: Callable[[str], None], clock: Callable[[], float] = time.time
    ) -> None:
        self._certificates, self._warn, self._clock = certificates, warn, clock
        self._told: dict[str, float] = {}

    def look(self) -> None:
        """Read files that have changed, and warn at most once a day about each."""
        if self._certificates is None:
            return
        self._certificates.renew()
        now, files = self._clock(), self._certificates.files
        for which, ends in self._certificates.ends.items():
            if ends - now >= WARN_S:
                self._told.pop(which, None)
            elif now - self._told.get(which, float("-inf")) >= DAY_S:
                self._told[which] = now
                option, remedy = WHICH[which]
                path = files.cert if which == "server" else files.client_ca
                self._warn(f"{option} {path} {left_in_words(ends, now)}: {remedy}")

    async def watch(self) -> None:
        """Check regularly as long as the server runs."""
        while True:
            self.look()
            await asyncio.sleep(EXPIRY_LOOK_S)
