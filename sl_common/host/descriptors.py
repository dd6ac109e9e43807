"""How many files and connections this process may have open at once (`ulimit -n`): raised where it may be, told of where it is spent."""

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
REPEAT_WARNING_S = 600.0  # without a free descriptor it is said again after so long, and not before


@dataclass(frozen=True, kw_only=True, slots=True)
class Room:
    """Descriptors that somebody needs: `least` to work at all, `wanted` not to be short of any, and what for."""

    least: int
    wanted: int
    what: str


def limit() -> int | None:
    """How many this process may have now; None where nothing bounds it, or nobody says."""
    if resource is None:
        return None
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else int(soft)


def make_room(room: Room) -> str | None:
    """Raise the soft limit to what is wanted, as far as the hard one allows: what to say of it, or None.

    Raises ConfigError if even the hard limit is below the least.
    """
    before = limit()
    if before is None or before >= room.wanted:
        return None
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = room.wanted if hard == resource.RLIM_INFINITY else min(room.wanted, int(hard))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    except (OSError, ValueError):  # some systems have a lower bound that they do not tell
        most = before
    needs = f"{room.what}: {room.least} open files and connections are needed, {room.wanted} not to be short of any"
    if most < room.least:
        raise ConfigError(f"{needs}; the hard limit of this process (ulimit -Hn) is {most}: {WAYS_OUT}")
    if most < room.wanted:
        return f"{needs}; this process may have {most} (ulimit -Hn): {WAYS_OUT}"
    return f"{needs}: raised the limit of this process (ulimit -n) from {before} to {most}"


def cause(error: OSError) -> str:
    """An error in words, with the limit where that is what was met."""
    words = error.strerror or str(error)
    return f"{words}; ulimit -n is {limit()}" if error.errno in SPENT else words


class Shortage:
    """Tells once when no descriptor is free. From any thread."""

    def __init__(self, warn: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._warn, self._clock = warn, clock
        self._told: float | None = None

    def met(self) -> None:
        """One was asked for, and there was none."""
        now = self._clock()
        if self._told is not None and now - self._told < REPEAT_WARNING_S:
            return
        self._told = now
        self._warn(
            f"no file descriptor is free: this process may have {limit()} (ulimit -n); new connections wait until others end, "
            f"and what cannot be written now is written later; {WAYS_OUT}"
        )

    def look(self) -> bool:
        """Whether one is free; tells if not."""
        try:
            os.close(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            if error.errno not in SPENT:
                return True
            self.met()
            return False
        return True


def is_spent(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, is that no descriptor was free: it may go well the next time."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in SPENT:
            return True
        error = error.__cause__
    return False
