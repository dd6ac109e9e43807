"""Standard output and standard error of a command.

Law: no character, no reader and no full disk can end a run. `install` makes both streams ours: a character that the encoding lacks is
written with others. A command whose purpose is its output ends when nobody takes it (OutputFailed). `keep_going` is for runs: from then
on a thread writes; what cannot be written is dropped, counted and told on the other stream.
"""

from __future__ import annotations

import atexit
import codecs
import errno
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TextIO

from sl_common.host.printed import Stream

MAX_WAITING_OUTPUT = 1 << 20  # bytes that wait for a reader that is slow
LAST_S = 2.0  # how long the end of a process waits for a reader that takes nothing
WRITE_RETRY_S = 0.5  # a stream that was full or refused is tried again after so long
ERRORS = "cutlayer.plain"
STUCK = "nobody reads it"
_PLAIN = str.maketrans(
    {
        **dict(zip("→←×÷≈≤≥−–—·•‖│┃║─━═“”‘’", "><x/~<>---.*||||--=\"\"''", strict=True)),
        "…": "...",
        "€": "EUR",
        "‑": "-",
        "\u0302": "^",  # of x̂
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
    """Encode what an encoding lacks: signs as their ASCII likeness, other characters as escapes."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(_PLAIN)
    return text.encode("ascii", "backslashreplace").decode("ascii"), error.end


codecs.register_error(ERRORS, _plain)


class Output(Stream):
    """A text stream over a file descriptor, written at once, or by a thread after `keep_going`."""

    def __init__(self, handle: int, encoding: str = "utf-8", *, needed: bool = True) -> None:
        """`needed`: a command that cannot write here has failed."""
        self._handle = handle
        self._needed = needed
        self._encoding = encoding
        self._encoder = codecs.getincrementalencoder(encoding)(ERRORS)
        self._lock = threading.RLock()
        self._news = threading.Condition(self._lock)
        self._waiting: deque[bytes] = deque()
        self._nbytes = 0  # of them
        self._thread: threading.Thread | None = None
        self._torn = False  # what was written last does not end a line
        self._tell: Callable[[str], None] | None = None
        self.lost = 0  # pieces, usually lines, that were dropped
        self.trouble: str | None = None  # why, the last time

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
        """Return whether a terminal shows it."""
        try:
            return os.isatty(self._handle)
        except OSError:
            return False

    def flush(self) -> None:
        """Do nothing: whatever is written is on its way."""

    def write(self, text: str) -> int:
        """Write a piece, or queue it. Raises OutputFailed before `keep_going`, and nothing after it."""
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
            except BlockingIOError:  # whoever shares this pipe or terminal made it non-blocking
                select.select([], [self._handle], [], WRITE_RETRY_S)

    # --- of a run

    def keep_going(self, tell: Callable[[str], None]) -> None:
        """Never raise and never wait from now on. `tell` is called with a text, from another thread, once when pieces are first dropped."""
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
        # Not from here: the stream it is told on may be this one's twin, in the same state.
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
            except (OSError, ValueError) as error:  # it is tried again with the next piece: a disk may have room then
                self._took(str(getattr(error, "strerror", None) or error))
            else:
                self._took()

    def _took(self, why: str | None = None) -> None:
        with self._lock:
            self._nbytes -= len(self._waiting.popleft())
            if why is not None:
                self._drop(why)
            self._news.notify_all()

    def drain(self, at_most_s: float = LAST_S) -> None:
        """Wait until all is written, while the reader takes something at least every so many seconds."""
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


def hold_descriptors() -> None:
    """Put /dev/null where standard input, output or error are closed: files and sockets that are opened later would get their numbers."""
    for handle in range(3):
        try:
            os.fstat(handle)
        except OSError as error:
            if error.errno == errno.EBADF:
                os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one


_ours: dict[str, Output] = {}  # sys.stdout may be somebody's proxy for a while, such as a bar's
_apart = False  # sys.stdout is for other code


def install(printed: Stream | None = None) -> None:
    """Replace sys.stdout and sys.stderr, in the encodings that Python chose for them.

    `printed`: takes what other code writes to sys.stdout, which is apart from `results` then; what libraries and child processes write
    beneath Python goes to standard error.
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
    """Let a run go on whatever becomes of its output; `tell` gets the name of a stream that lost something first, and why."""
    for name, stream in _ours.items():
        stream.keep_going(partial(tell, name))


def drain() -> None:
    """Wait for what was written before, so that the two streams come in order. Bounded."""
    for stream in _ours.values():
        stream.drain()


def dropped_output() -> dict[str, tuple[int, str]]:
    """Pieces that each stream has dropped and why, for those that dropped any."""
    return {name: (stream.lost, stream.trouble or "") for name, stream in _ours.items() if stream.lost}


def stderr() -> Output | None:
    """Return Python's standard error where it is ours."""
    return _ours.get("stderr")
