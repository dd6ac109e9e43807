"""HTTP/2 by hand, for what no gRPC client would send: half a message, a byte at a time, headers without end."""

from __future__ import annotations

import socket
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST, SETTINGS, PING, GOAWAY, WINDOW, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_HEADERS = 4
CALL = {
    ":method": "POST",
    ":scheme": "http",
    ":path": "/sl.v1.SplitLearning/Train",
    ":authority": "localhost",
    "content-type": "application/grpc",
    "te": "trailers",
}


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One HTTP/2 frame."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def headers(fields: dict[str, str] | list[tuple[str, str]]) -> bytes:
    """HPACK without its tables: each field literally."""
    pairs = fields.items() if isinstance(fields, dict) else fields
    return b"".join(b"\x00" + _text(name) + _text(value) for name, value in pairs)


def _text(text: str) -> bytes:
    raw = text.encode()
    if len(raw) < 127:
        return bytes([len(raw)]) + raw
    rest, out = len(raw) - 127, bytearray([127])
    while rest > 127:
        out.append(rest & 127 | 128)
        rest >>= 7
    out.append(rest)
    return bytes(out) + raw


def prefixed(message: bytes, says: int | None = None) -> bytes:
    """A gRPC message with its five bytes, which may lie about its length."""
    return b"\x00" + struct.pack(">I", len(message) if says is None else says) + message


class Line:
    """A connection that has shaken hands and speaks frames."""

    def __init__(self, address: str) -> None:
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), 20)
        self.socket.sendall(PREFACE + frame(SETTINGS, 0, 0))
        self._next = 1

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def call(self, more: list[tuple[str, str]] | None = None, method: str = "Train") -> int:
        """Open a stream of the service; its number."""
        stream, self._next = self._next, self._next + 2
        block = headers([*(CALL | {":path": f"/sl.v1.SplitLearning/{method}"}).items(), *(more or [])])
        pieces = [block[at : at + 16384] for at in range(0, len(block), 16384)]
        for number, piece in enumerate(pieces):
            last = END_HEADERS if number == len(pieces) - 1 else 0
            self.send(frame(HEADERS if number == 0 else CONTINUATION, last, stream, piece))
        return stream

    def settle(self) -> None:
        """Agree to the peer's settings; before, a stream may carry no more than 64 KiB."""
        self.socket.recv(1 << 12)
        self.send(frame(SETTINGS, 1, 0))

    def send(self, data: bytes) -> None:
        """Bytes as they are."""
        self.socket.sendall(data)

    def say(self, stream: int, data: bytes) -> None:
        """Bytes of a stream, in frames of at most 16 KiB."""
        self.send(b"".join(frame(DATA, 0, stream, data[at : at + 16384]) for at in range(0, len(data), 16384)))

    def heard(self, seconds: float = 20.0) -> bytes:
        """What comes until the peer closes, or for so long."""
        self.socket.settimeout(seconds)
        came = b""
        try:
            while data := self.socket.recv(1 << 16):
                came += data
        except OSError:
            pass
        return came
