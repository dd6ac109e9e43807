"""Standard output and standard error of a command.

Law: no character, no reader and no full disk can end a run. `install` replaces both streams: a character that the
encoding lacks is written with other characters. A command that only prints ends when its output fails (OutputFailed).
`keep_going` is for runs: from then on a thread writes; output that cannot be written is dropped, counted and reported
on the other stream.
"""

from __future__ import annotations

import atexit
import codecs
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TextIO

from sl_common.host.printed import TextStream

MAX_WAITING_OUTPUT = 1 << 20  # bytes that wait for a slow reader
LAST_S = 2.0  # time that the end of a process waits for a reader that reads nothing
WRITE_RETRY_S = 0.5  # pause before writing again to a stream that was full
ERRORS = "cutlayer.plain"
STUCK = "nobody reads it"
_PLAIN = str.maketrans(
    {
        **dict(zip("→←×÷≈≤≥−–—·•‖│┃║─━═“”‘’", "><x/~<>---.*||||--=\"\"''", strict=True)),
        "…": "...",
        "€": "EUR",
        "‑": "-",
        "\u0302": "^",  # as in x̂
        "\u00a0": " ",
        "\u202f": " ",
    }
)


class OutputFailed(Exception):  # not an OSError, which libraries catch
    """Output of a command could not be written; `number` is the errno."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error.strerror or str(error))
        self.number = error.errno


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Replace characters that an encoding lacks: signs by similar ASCII, others by escapes."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(_PLAIN)
    return text.encode("ascii", "backslashreplace").decode("ascii"), error.end


codecs.register_error(ERRORS, _plain)


class Output(TextStream):
    """Text stream over a file descriptor, written immediately, or by a thread after `keep_going`."""

    def __init__(self, handle: int, encoding: str = "utf-8", *, needed: bool = True) -> None:
        """`needed`: failing to write here fails the command."""
        self._handle = handle
        self._needed = needed
        self._encoding = encoding
        self._encoder = codecs.getincrementalencoder(encoding)(ERRORS)
        self._lock = threading.RLock()
        self._news = threading.Condition(self._lock)
        self._waiting: deque[bytes] = deque()
        self._nbytes = 0  # waiting bytes
        self._thread: threading.Thread | None = None
        self._torn = False  # the last output does not end with a newline
        self._tell: Callable[[str], None] | None = None
        self.lost = 0  # pieces, usually lines, that were dropped
        self.trouble: str | None = None  # reason of the last loss

    # --- as a text stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Name of the encoding."""
        return self._encoding

    @property
    def errors(self) -> str:  # type: ignore[override]
        """Name of the error handler."""
        return ERRORS

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._handle

    def isatty(self) -> bool:
        """Return True if it is a terminal."""
        try:
            return os.isatty(self._handle)
        except OSError:
            return False

    def flush(self) -> None:
        """Do nothing: output is not buffered."""

    def write(self, text: str) -> int:
        """Write or queue text. Raises OutputFailed before `keep_going`, and nothing after it."""
        if not isinstance(text, str):
            raise TypeError(f"a text stream takes str, not {type(text).__name__}")
        with self._lock:
            data = self._encoder.encode(text)
            if self._thread is None:
                try:
                    self._write_all(data)
                except OSError as error:
                    if self._needed:
                        raise OutputFailed(error) from None
            elif data:
                self._queue(data)
        return len(text)

    def _write_all(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            try:
                count = os.write(self._handle, left)
                self._torn = left[count - 1] != ord("\n")
                left = left[count:]
            except BlockingIOError:  # another process made the shared pipe or terminal non-blocking
                select.select([], [self._handle], [], WRITE_RETRY_S)

    # --- for a run

    def keep_going(self, tell: Callable[[str], None]) -> None:
        """Never raise and never wait from now on.

        `tell` is called once, from another thread, with the reason of the first loss.
        """
        with self._lock:
            self._tell = tell
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=f"output {self._handle}", daemon=True)
                self._thread.start()
                atexit.register(self.drain)

    def _queue(self, data: bytes) -> None:
        if self._nbytes + len(data) > MAX_WAITING_OUTPUT:
            self._drop(STUCK)
            return
        self._waiting.append(data)
        self._nbytes += len(data)
        self._news.notify_all()

    def _drop(self, why: str) -> None:
        first, self.lost, self.trouble = self.lost == 0, self.lost + 1, why
        # In another thread: the stream that reports it may fail in the same way.
        if first and self._tell is not None:
            threading.Thread(target=self._tell, args=(why,), name="output lost", daemon=True).start()

    def _run(self) -> None:
        while True:
            with self._lock:
                while not self._waiting:
                    self._news.wait()
                data = self._waiting[0]
                if self._torn and self.lost:
                    data = b"\n" + data
            try:
                self._write_all(data)
            except (OSError, ValueError) as error:  # the next piece is tried: the disk may have room then
                self._done_with_first(str(getattr(error, "strerror", None) or error))
            else:
                self._done_with_first()

    def _done_with_first(self, why: str | None = None) -> None:
        with self._lock:
            self._nbytes -= len(self._waiting.popleft())
            if why is not None:
                self._drop(why)
            self._news.notify_all()

    def drain(self, at_most_s: float = LAST_S) -> None:
        """Wait until all is written, as long as the reader reads something every `at_most_s` seconds."""
        with self._lock:
            until, left = time.monotonic() + at_most_s, self._nbytes
            while self._waiting and time.monotonic() < until:
                self._news.wait(until - time.monotonic())
                if self._nbytes < left:
                    until, left = time.monotonic() + at_most_s, self._nbytes

    def move(self, handle: int) -> None:
        """Write to another descriptor from now on."""
        self.drain()
        with self._lock:
            self._handle = handle


_ours: dict[str, Output] = {}  # sys.stdout may be a proxy for a while, such as a progress bar's
_apart = False  # sys.stdout is for other code


def install(printed: TextStream | None = None) -> None:
    """Replace sys.stdout and sys.stderr, in the encodings that Python chose for them.

    `printed` takes the text that other code writes to sys.stdout, which is then apart from `results`; output of
    libraries and child processes beneath Python goes to standard error.
    """
    global _apart
    for name, handle in (("stdout", 1), ("stderr", 2)):
        before = getattr(sys, name)
        if before is not None:
            try:
                before.flush()
            except (OSError, ValueError):
                continue
        _ours[name] = Output(handle, getattr(before, "encoding", None) or "utf-8", needed=name == "stdout")
        setattr(sys, name, _ours[name])
    if printed is not None and "stdout" in _ours:
        _ours["stdout"].move(os.dup(1))
        os.dup2(2, 1)
        sys.stdout, _apart = printed, True


def results() -> TextIO | None:
    """Return the stream for what this command itself says: sys.stdout, unless that is for other code."""
    return _ours["stdout"] if _apart else sys.stdout  # type: ignore[return-value]


def keep_output_going(tell: Callable[[str, str], None]) -> None:
    """Continue even if output fails. `tell` gets a stream's name and the reason of its first loss."""
    for name, stream in _ours.items():
        stream.keep_going(partial(tell, name))


def drain() -> None:
    """Wait for a bounded time until earlier output is written, so that both streams are in order."""
    for stream in _ours.values():
        stream.drain()


def dropped_output() -> dict[str, tuple[int, str]]:
    """Return the number of dropped pieces and the reason, for each stream that dropped any."""
    return {name: (stream.lost, stream.trouble or "") for name, stream in _ours.items() if stream.lost}


def stderr() -> Output | None:
    """Return standard error if `install` replaced it."""
    return _ours.get("stderr")
