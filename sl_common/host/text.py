"""Text from others, made fit for a terminal, a log line or a file name: the one function for it, on both sides."""

from __future__ import annotations

import os

from sl_common.errors import ConfigError

MAX_PEER_TEXT = 500  # characters of what a peer wrote
MAX_OURS = 4_000  # characters of a line of our own, which may quote a peer and a path
MAX_LINES = 200  # of one text


def printable(text: object, most: int = MAX_PEER_TEXT) -> str:
    """One line without control characters, escape sequences or characters that change the direction of text.

    A character that is not printable becomes a space. Beyond `most` characters the text is cut, which an ellipsis says.
    """
    line = "".join(one if one.isprintable() else " " for one in str(text)[: most + 1])
    return line if len(line) <= most else line[: most - 1] + "…"


def printable_lines(text: object) -> str:
    """The same for a text of several lines, such as an error that names several keys: newlines stay, nothing else that is not printable."""
    lines = str(text).split("\n")
    shown = [printable(line, MAX_OURS) for line in lines[:MAX_LINES]]
    return "\n".join(shown if len(lines) <= MAX_LINES else [*shown, f"… and {len(lines) - MAX_LINES} more lines"])


def given(option: str, text: str) -> str:
    """A text of the command line or the environment, which is UTF-8 also where the locale says ASCII. Raises ConfigError."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:  # Python kept bytes that the locale's encoding lacks
        pass
    try:
        return os.fsencode(text).decode()
    except UnicodeError as error:
        raise ConfigError(f"{option} {printable(text)!r}: not UTF-8") from error
