"""Makes text from peers safe for a terminal, a log line or a file name."""

from __future__ import annotations

import os

from sl_common.errors import ConfigError

MAX_PEER_TEXT = 500  # characters of a peer's text
MAX_OURS = 4_000  # characters of a line of this program, which may quote a peer and a path
MAX_LINES = 200  # lines of one text


def printable(text: object, most: int = MAX_PEER_TEXT) -> str:
    """Return one line without control characters, escape sequences or characters that change the direction of text.

    Characters that are not printable become spaces. Text beyond `most` characters is cut and ends with an ellipsis.
    """
    line = "".join(one if one.isprintable() else " " for one in str(text)[: most + 1])
    return line if len(line) <= most else line[: most - 1] + "…"


def printable_lines(text: object) -> str:
    """Do as `printable` for a text of several lines, such as an error that names several keys: newlines stay."""
    lines = str(text).split("\n")
    shown = [printable(line, MAX_OURS) for line in lines[:MAX_LINES]]
    return "\n".join(shown if len(lines) <= MAX_LINES else [*shown, f"… and {len(lines) - MAX_LINES} more lines"])


def given(option: str, text: str) -> str:
    """Return a text of the command line or environment, decoded as UTF-8 in any locale. Raises ConfigError."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:  # Python escaped bytes that the locale's encoding lacks
        pass
    try:
        return os.fsencode(text).decode()
    except UnicodeError as error:
        raise ConfigError(f"{option} {printable(text)!r}: not UTF-8") from error
