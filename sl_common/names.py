"""Rules for a client's name and for its token."""

from __future__ import annotations

MAX_NAME = 64
MAX_REASON = 500  # characters of why a client leaves, as it says


def is_name(text: str) -> bool:
    """Whether a client may be called so; the empty text, which asks the server for a name, too."""
    return len(text) <= MAX_NAME and text.isprintable() and "/" not in text


def is_token(text: str) -> bool:
    """Whether it can travel in a call's metadata; the empty text, which is no token, too."""
    return text.isascii() and text.isprintable() and " " not in text
