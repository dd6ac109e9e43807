"""Liveness and readiness of a server process, asked over HTTP. The answers contain no names and no data."""

from __future__ import annotations

import threading

from sl_common.host.http import HttpAnswer

ENDING, OVER = "ending", "the run is over"


class Health:
    """State of the process: written by its main loop, read by the HTTP thread."""

    def __init__(self, loop: threading.Thread) -> None:
        self._loop = loop
        self._ending = ""

    def ends(self, why: str = ENDING) -> None:
        """Record that no more clients are accepted, and why; the first reason stays."""
        self._ending = self._ending or why

    @property
    def dead(self) -> str:
        """Reason why the process must be restarted, or empty. A loop that ended normally is not dead."""
        if self._loop.ident is None or self._loop.is_alive() or self._ending:
            return ""
        return f"the thread {self._loop.name!r} has died"

    @property
    def away(self) -> str:
        """Reason why no client is accepted now, or empty."""
        if self._loop.ident is None:
            return "starting"
        return self._ending or self.dead


def page(wrong: str) -> HttpAnswer:
    """Return status 200, or 503 with the text of the problem."""
    return HttpAnswer(status=503 if wrong else 200, body=f"{wrong or 'ok'}\n".encode())
