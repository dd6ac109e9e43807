"""Errors typed by blame: the type tells whose fault it is and what may continue."""

from __future__ import annotations


class CutlayerError(Exception):
    """Base of all errors that this project raises on purpose; the text is written for the user."""


class ConfigError(CutlayerError):
    """Our own side is wrong: a key, a file or an option. The text names it and the value it had."""


class DataError(ConfigError):
    """A data set is missing, truncated or of the wrong shape. The text names the file or the field."""


class WireError(CutlayerError):
    """The peer is wrong: close that session, the others continue. The text carries both values."""


class Unfit(ConfigError, WireError):
    """A client and the run do not suit each other, by properties that the client truly has.

    The client is refused, and the others continue. If one process holds both, its configuration is wrong.
    """


def first_line(error: BaseException, most: int = 300) -> str:
    """Return the first line of a foreign error, cut to `most` characters; its type's name if it has no text."""
    return str(error).partition("\n")[0][:most] or type(error).__name__


AGAIN = frozenset({"crowded", "silent", "rate"})  # codes of a Refused after which a later try may succeed


class Refused(CutlayerError):
    """A refusal, by us or by the peer; another try without a change is pointless.

    `code` is one word for programs and metrics: version, full, shard, identity, revoked, protocol, limit, over,
    replaced, forgotten, headers, slow, data, model; crowded, silent, rate, after which a later try may succeed; tls,
    if no stream was established.
    """

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class PeerLost(CutlayerError):
    """The peer could not be reached again within the time allowed."""


class Diverged(CutlayerError):
    """Training produced NaN or Inf on our own side; the text says where."""
