"""One frame: its number, its bytes, which are joined only when it is written, and the bytes counted by kind."""

from __future__ import annotations

from dataclasses import dataclass

from sl_common.codec.packed import Buffer
from sl_common.wire.accounting import FrameTally

CHUNK_BYTES = (
    1 << 20
)  # of a body in an ordinary frame: Python gRPC moves messages of 1 MiB four times faster than one of 16 MiB
MAX_CHUNK = 4 << 20  # bytes of a body in a received frame
MAX_GRPC_MESSAGE = 2 * MAX_CHUNK  # bytes of one gRPC message: a frame with its header


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Frame:
    """One frame, and its bytes on the wire by kind (gRPC's prefix included).

    A tensor that nobody writes to until it is acknowledged is not copied when it is packed: `bytes(frame)` joins the
    pieces when the frame is written, and returns the same bytes every time.
    """

    seq: int  # 0: a bare acknowledgement
    pieces: tuple[Buffer, ...]
    tally: FrameTally
    ends: bool = False  # True for the last frame of a message

    def __bytes__(self) -> bytes:
        first = self.pieces[0]
        return first if len(self.pieces) == 1 and isinstance(first, bytes) else b"".join(self.pieces)

    @property
    def data(self) -> bytes:
        """The serialized frame."""
        return bytes(self)
