"""Limit on open files and connections of this process (`ulimit -n`): raised if possible, reported when exhausted."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from sl_common.errors import ConfigError

try:
    import resource
except ImportError:  # pragma: no cover  (not a Unix)
    resource = None  # type: ignore[assignment]

WAYS_OUT = (
    "raise it: ulimit -n in a shell, LimitNOFILE= in a systemd unit, --ulimit nofile= for a container, "
    "/etc/security/limits.conf for a user"
)
SPENT = (errno.EMFILE, errno.ENFILE)
REPEAT_WARNING_S = 600.0  # time between two warnings while no descriptor is free


@dataclass(frozen=True, kw_only=True, slots=True)
class Room:
    """Descriptors needed for a purpose: `least` to work at all, `wanted` to never run short."""

    least: int
    wanted: int
    what: str


def limit() -> int | None:
    """Return this process's current limit; None if there is none or it is unknown."""
    if resource is None:
        return None
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else int(soft)


def make_room(room: Room) -> str | None:
    """Raise the soft limit to `wanted`, up to the hard limit. Return a message for the log, or None if nothing changed.

    Raises ConfigError if the hard limit is below `least`.
    """
    before = limit()
    if before is None or before >= room.wanted:
        return None
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = room.wanted if hard == resource.RLIM_INFINITY else min(room.wanted, int(hard))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    except (OSError, ValueError):  # some systems have a lower limit that they do not report
        most = before
    needs = f"{room.what}: {room.least} open files and connections are needed, {room.wanted} not to be short of any"
    if most < room.least:
        raise ConfigError(f"{needs}; the hard limit of this process (ulimit -Hn) is {most}: {WAYS_OUT}")
    if most < room.wanted:
        return f"{needs}; this process may have {most} (ulimit -Hn): {WAYS_OUT}"
    return f"{needs}: raised the limit of this process (ulimit -n) from {before} to {most}"


def cause(error: OSError) -> str:
    """Return an error in words; if no descriptor was free, with the limit."""
    words = error.strerror or str(error)
    return f"{words}; ulimit -n is {limit()}" if error.errno in SPENT else words


class Shortage:
    """Warns, at most once in REPEAT_WARNING_S, that no descriptor is free. Usable from any thread."""

    def __init__(self, warn: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._warn, self._clock = warn, clock
        self._warned_at: float | None = None

    def met(self) -> None:
        """Report that a descriptor was requested and none was free."""
        now = self._clock()
        if self._warned_at is not None and now - self._warned_at < REPEAT_WARNING_S:
            return
        self._warned_at = now
        self._warn(
            f"no file descriptor is free: this process may have {limit()} (ulimit -n); new connections wait "
            f"until others end, and what cannot be written now is written later; {WAYS_OUT}"
        )

    def look(self) -> bool:
        """Return True if a descriptor is free; warn if not."""
        try:
            os.close(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            if error.errno not in SPENT:
                return True
            self.met()
            return False
        return True


def is_spent(error: BaseException | None) -> bool:
    """Return True if an error or one of its causes is that no descriptor was free, so that a retry may succeed."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in SPENT:
            return True
        error = error.__cause__
    return False


def hold_descriptors() -> None:
    """Open /dev/null for closed standard streams, or later files and sockets would get their numbers."""
    for handle in range(3):
        try:
            os.fstat(handle)
        except OSError as error:
            if error.errno == errno.EBADF:
                os.open(os.devnull, os.O_RDWR)  # it gets the lowest free number, which is this one
