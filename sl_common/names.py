"""Rules for a client's name and for its token."""

from __future__ import annotations

MAX_NAME = 64  # characters
MAX_REASON = 500  # characters of the reason that a leaving client gives


def is_name(text: str) -> bool:
    """Return True if a text may be a client's name; also for the empty text, which asks the server for a name."""
    return len(text) <= MAX_NAME and text.isprintable() and "/" not in text


def is_token(text: str) -> bool:
    """Return True if a token can travel in a call's metadata; also for the empty text, which is no token."""
    return text.isascii() and text.isprintable() and " " not in text
