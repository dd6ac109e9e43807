"""Whether a server process lives and takes clients, for those who ask over HTTP. It tells no name and no data."""

from __future__ import annotations

import threading

from sl_common.host.http import HttpAnswer

ENDING, OVER = "ending", "the run is over"


class Health:
    """Written by the loop that does the process's work, read by the thread that answers."""

    def __init__(self, loop: threading.Thread) -> None:
        self._loop = loop
        self._ending = ""

    def ends(self, why: str = ENDING) -> None:
        """Nobody new is taken from now on; the first reason stays."""
        self._ending = self._ending or why

    @property
    def dead(self) -> str:
        """Why only another process can help; empty while that is not so. A loop that has come to its end is not dead."""
        if self._loop.ident is None or self._loop.is_alive() or self._ending:
            return ""
        return f"the thread {self._loop.name!r} has died"

    @property
    def away(self) -> str:
        """Why no client is taken now; empty while they are."""
        if self._loop.ident is None:
            return "starting"
        return self._ending or self.dead


def page(wrong: str) -> HttpAnswer:
    """200, or 503 and what is wrong."""
    return HttpAnswer(status=503 if wrong else 200, body=f"{wrong or 'ok'}\n".encode())
