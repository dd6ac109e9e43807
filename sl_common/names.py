"""What a client may be called, and what its token may look like."""

from __future__ import annotations

MAX_NAME = 64
MAX_LINE = 500


def is_name(text: str) -> bool:
    """Whether a client may be called so; the empty text, which asks the server for a name, too."""
    return len(text) <= MAX_NAME and text.isprintable() and "/" not in text


def is_token(text: str) -> bool:
    """Whether it can travel in a call's metadata; the empty text, which is no token, too."""
    return text.isascii() and text.isprintable() and " " not in text


def one_line(text: str) -> str:
    """What a peer wrote, as a line that a log and a terminal can be trusted with."""
    return "".join(one if one.isprintable() else " " for one in text[:MAX_LINE])
