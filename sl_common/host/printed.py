"""Text streams for the output of other code: one as such code expects it, and one whose lines become JSON."""

from __future__ import annotations

import codecs
import io
import threading
from collections.abc import Callable

MOST_HELD = 1 << 16  # characters of a line that does not end


class TextStream(io.TextIOBase):
    """A text stream that has what Python's own standard output has beside `write`."""

    def writable(self) -> bool:
        """Return True."""
        return True

    def reconfigure(self, **_options: object) -> None:
        """Do nothing: every piece is written at once, and the encoding is the terminal's."""

    @property
    def buffer(self) -> Bytes:
        """A stream of bytes that are text in UTF-8."""
        return Bytes(self)


class Bytes(io.RawIOBase):
    """Bytes on their way to a text stream."""

    def __init__(self, text: TextStream) -> None:
        self._text = text
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, data: object) -> int:
        """Write a piece."""
        view = memoryview(data)  # type: ignore[arg-type]
        self._text.write(self._decoder.decode(view.tobytes()))
        return view.nbytes


class Printed(TextStream):
    """Hands on whole lines, from any thread."""

    encoding = "utf-8"

    def __init__(self, line: Callable[[str], object]) -> None:
        self._line = line
        self._held = ""
        self._lock = threading.RLock()

    def write(self, text: str) -> int:
        """Take a piece; a line that does not end is cut."""
        if not isinstance(text, str):
            raise TypeError(f"a text stream takes str, not {type(text).__name__}")
        with self._lock:
            *lines, self._held = (self._held + text).split("\n")
            if len(self._held) > MOST_HELD:
                lines, self._held = [*lines, self._held], ""
            for line in lines:
                self._line(line)
        return len(text)

    def end(self) -> None:
        """Hand on what is no whole line; nothing more comes."""
        with self._lock:
            if self._held:
                self._line(self._held)
            self._held = ""
