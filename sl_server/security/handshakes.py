"""Failed TLS handshakes, and connections without a free descriptor.

gRPC reports them only in its log, which goes to file descriptor 2, so they are read there.

Law: every other line is passed on to stderr, without control characters; Python's own stderr does not pass through
here. A crash of C code may lose the last lines that it wrote. With GRPC_VERBOSITY=ERROR gRPC does not write these
lines, and nothing is counted.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TextIO

from sl_common.errors import Refused
from sl_common.host import output
from sl_common.host.text import printable_lines

_FAILED = re.compile(rb"\] Handshake failed with error [^:]*(?::.*OPENSSL_internal:(\w+)(?:: (.*))?)?$")
_NAME = re.compile(rb"\] No match found for server name: (.*)$")
_FULL = b"] File descriptor limit reached"  # gRPC writes it once a second, as long as it lasts
_MAX_LINE = 4096  # bytes that are searched: the patterns backtrack
_MINE = b"ssl_transport_security"  # the source file of both messages
_BROKE_OFF = "it may not trust --cert: another CA, a date, a name it is not for"
_CAUSES = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": ("a client without a certificate", "--client-ca asks for one"),
    "WRONG_VERSION_NUMBER": ("a client that speaks plaintext", "this server speaks TLS only"),
    "HTTP_REQUEST": ("a client that speaks plaintext", "this server speaks TLS only"),
    "BAD_PACKET_LENGTH": ("a client that broke the handshake off", _BROKE_OFF),  # OpenSSL's plaintext alert
}


def read_line(line: bytes) -> tuple[str, Refused] | None:
    """Return the refused peer and the reason; None for any other line."""
    line = line[:_MAX_LINE].rstrip()
    if _MINE not in line:
        return None
    if name := _NAME.search(line):
        who = f"a client that asked for {name[1].decode(errors='replace')[:80]!r}"
        return who, Refused("tls", "--cert is not made for that name")
    if failed := _FAILED.search(line):
        code, detail = ((part or b"").decode(errors="replace") for part in failed.groups())
        return _cause(code, detail)
    return None


def _cause(code: str, detail: str) -> tuple[str, Refused]:
    if code == "CERTIFICATE_VERIFY_FAILED":
        who, why = f"a client's certificate ({detail})", "--client-ca must have signed it, and its dates must hold"
    elif "ALERT" in code:
        who, why = f"a client that broke the handshake off ({code})", _BROKE_OFF
    else:
        who, why = _CAUSES.get(code, (f"a client whose handshake failed ({code or 'unknown'})", "no TLS came about"))
    return who, Refused("tls", why)


@contextlib.contextmanager
def heard(tell: Callable[[str, Refused], None], full: Callable[[], None] = lambda: None) -> Iterator[None]:
    """While the context lasts, call `tell` for each failed handshake and `full` for each connection without a
    descriptor.

    Both are called from another thread.
    """
    kept = os.dup(2)
    before, ours = sys.stderr, output.stderr()
    if ours is not None:
        ours.move(kept)
    else:
        sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8", errors="backslashreplace")
    to = ours or sys.stderr
    out, into = os.pipe()
    os.dup2(into, 2)
    os.close(into)
    reader = threading.Thread(target=_read, args=(out, to, tell, full), daemon=True)
    reader.start()
    try:
        yield
    finally:
        os.dup2(kept, 2)  # closes the pipe's last writer, so that its reader ends
        reader.join(1.0)
        if ours is not None:
            ours.move(2)
        else:
            sys.stderr.close()
            sys.stderr = before
        os.close(kept)


def _read(out: int, to: TextIO, tell: Callable[[str, Refused], None], full: Callable[[], None]) -> None:
    with os.fdopen(out, "rb") as lines:
        for line in lines:
            if _FULL in line[:_MAX_LINE]:
                full()
                continue
            found = read_line(line)
            if found is None:
                with contextlib.suppress(OSError, ValueError):  # a full disk, or stderr is closed
                    to.write(printable_lines(line.decode(errors="backslashreplace")))
            else:
                tell(*found)
