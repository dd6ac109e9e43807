"""How long one client is waited for: a message under way must come nearer to its end, and whose turn it is must say something.

Pure; the time is an argument, in seconds. Time in which there is no stream, or in which we do not read it, does not count.
"""

from __future__ import annotations

from sl_common.errors import Refused
from sl_common.limits import PeerLimits
from sl_server.transport.limiter import MessageProgress


def look_every_s(limits: PeerLimits) -> float:
    """How often to ask for each client's fault."""
    return min(1.0, limits.stall_s / 4, limits.silent_s / 4)


class Deadlines:
    """With one client, over all its streams."""

    def __init__(self, limits: PeerLimits, now: float) -> None:
        self._limits = limits
        self._progress = MessageProgress(limits.stall_s, limits.least_bytes_per_s)
        self._since = self._looked = now
        self._written = 0

    def heard(self, now: float) -> None:
        """A frame came, or what it waited for went out."""
        self._since = now

    def spare(self) -> None:
        """The message under way may take its time once more."""
        self._progress.stalled(0, self._looked)

    def fault(self, missing: int, now: float, *, owes: bool, held: bool, written: int = 0) -> Refused | None:
        """Why it is waited for no longer, if so.

        `missing` bytes of a message under way; `owes`: it is its turn to speak; `held`: it cannot speak, or is not read; `written`: frames that
        went out to it on its stream: while what it is to answer still goes out, it need not speak.
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
