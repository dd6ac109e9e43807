"""Deadlines of one client: a message under way must make progress, and a client that is expected to speak must do so.

Pure; the time is an argument, in seconds. Time without a stream, or in which the stream is not read, does not count.
"""

from __future__ import annotations

from sl_common.errors import Refused
from sl_common.limits import PeerLimits
from sl_server.transport.limiter import MessageProgress


def look_every_s(limits: PeerLimits) -> float:
    """Return the seconds between two looks at each client."""
    return min(1.0, limits.stall_s / 4, limits.silent_s / 4)


class Deadlines:
    """The deadlines of one client, over all its streams."""

    def __init__(self, limits: PeerLimits, now: float) -> None:
        self._limits = limits
        self._progress = MessageProgress(limits.stall_s, limits.least_bytes_per_s)
        self._since = self._looked = now
        self._written = 0

    def heard(self, now: float) -> None:
        """Record that a frame came, or that the client got what it waited for."""
        self._since = now

    def spare(self) -> None:
        """Measure the progress of the message under way anew."""
        self._progress.stalled(0, self._looked)

    def fault(self, missing: int, now: float, *, owes: bool, held: bool, written: int = 0) -> Refused | None:
        """Return why the client is not waited for any longer, or None.

        `missing`: bytes of a message under way that have not come. `owes`: the client is expected to speak. `held`: it
        has no stream, or is not read. `written`: frames written to its stream; while that grows, the client need not
        speak.
        """
        if written != self._written:
            self._written, self._since = written, now
        passed, self._looked = now - self._looked, now
        if held:
            self._progress.pause(passed)
            self._since += passed
            return None
        limits = self._limits
        if self._progress.stalled(missing, now):
            return Refused(
                "slow",
                f"a message that lacks {missing} bytes came with less than {limits.least_bytes_per_s:g} bytes a second "
                f"for server.limits.stall_s = {limits.stall_s:g} s",
            )
        if not owes:
            self._since = now
        elif now - self._since > limits.silent_s:
            return Refused("silent", f"it is its turn; server.limits.silent_s = {limits.silent_s:g} s are over")
        return None
