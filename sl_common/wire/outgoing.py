"""Numbers of the frames of one stream that wait to be written.

A peer that acknowledges one of them breaks the protocol. Pure.
"""

from __future__ import annotations

from typing import SupportsBytes

from sl_common.errors import WireError


class Outgoing:
    """Tracks queued frames by their numbers. One thread queues frames, another may hand them to the transport."""

    def __init__(self) -> None:
        self._queued = self._handed = 0

    def queue(self, frame: SupportsBytes) -> None:
        """Record that a frame is queued after the ones before it. A frame without a number is ignored."""
        seq = getattr(frame, "seq", 0)
        if not seq:
            return
        if not self._queued:  # the first on this stream: the peer received the ones before it on an earlier stream
            self._handed = seq - 1
        self._queued = seq

    def hand(self, frame: SupportsBytes) -> None:
        """Record that a frame is about to be written."""
        seq = getattr(frame, "seq", 0)
        if seq:
            self._handed = seq

    @property
    def next(self) -> int:
        """Number of the first waiting frame; 0 if there is none."""
        return self._handed + 1 if self._queued > self._handed else 0

    def check(self, acknowledged: int) -> None:
        """Raise WireError if the peer acknowledges a waiting frame: it could fill this queue and read nothing."""
        first = self.next
        if 0 < first <= acknowledged:
            raise WireError(f"peer acknowledges frame {acknowledged}, but frame {first} has not gone out yet")
