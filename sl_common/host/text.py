"""Text from others, made fit for a terminal, a log line or a file name: the one function for it, on both sides."""

from __future__ import annotations

MAX_LINE = 500  # characters


def printable(text: object, most: int = MAX_LINE) -> str:
    """One line without control characters, escape sequences or characters that change the direction of text.

    A character that is not printable becomes a space. Beyond `most` characters the text is cut, which an ellipsis says.
    """
    line = "".join(one if one.isprintable() else " " for one in str(text)[: most + 1])
    return line if len(line) <= most else line[: most - 1] + "…"
