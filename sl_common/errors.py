"""Errors typed by blame: whoever catches one knows whose fault it is and what may go on."""

from __future__ import annotations


class CutlayerError(Exception):
    """Any error this project raises on purpose; its text is written for the user."""


class ConfigError(CutlayerError):
    """Our own side is wrong: a key, a file or an option. The text names it and the value it had."""


class DataError(ConfigError):
    """A data set is missing, truncated or of the wrong shape. The text names the file or the field."""


class WireError(CutlayerError):
    """The peer is wrong: close that session, the others go on. The text carries both values."""


class Unfit(ConfigError, WireError):
    """A client and the run do not suit each other, by what the client truly has: it is refused, and the others go on. Where one process holds
    both, its configuration is wrong."""


def first_line(error: BaseException, most: int = 300) -> str:
    """What somebody else's code raised, in one line of at most so many characters; the type's name where it says nothing."""
    return str(error).partition("\n")[0][:most] or type(error).__name__


AGAIN = frozenset({"crowded", "silent", "rate"})  # codes of a Refused that time may change


class Refused(CutlayerError):
    """A no to the peer, or the peer's no to us; asking again unchanged is pointless.

    `code` is one word for programs and metrics: version, full, shard, identity, revoked, protocol, limit, over, replaced,
    forgotten, headers, slow, data, model; crowded, silent, rate, where another try later is not pointless; tls, where no stream came about.
    """

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class PeerLost(CutlayerError):
    """The peer could not be reached again within the time allowed."""


class Diverged(CutlayerError):
    """Training produced NaN or Inf on our own side; the text says where."""
