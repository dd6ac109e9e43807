"""What a client may be called."""

from __future__ import annotations

MAX_NAME = 64


def is_name(text: str) -> bool:
    """Whether a client may be called so; the empty text, which asks the server for a name, too."""
    return len(text) <= MAX_NAME and text.isprintable() and "/" not in text
