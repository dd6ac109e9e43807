"""Frames of one stream that wait to be written: nobody can have what has not gone out. Pure."""

from __future__ import annotations

from typing import SupportsBytes

from sl_common.errors import WireError


class Outgoing:
    """By their numbers. One thread queues frames, another may hand them to the transport."""

    def __init__(self) -> None:
        self._queued = self._handed = 0

    def queue(self, frame: SupportsBytes) -> None:
        """It is to be written after those before it; a frame without a number is none of ours."""
        seq = getattr(frame, "seq", 0)
        if not seq:
            return
        if not self._queued:  # the first on this stream: those before it arrived on another
            self._handed = seq - 1
        self._queued = seq

    def hand(self, frame: SupportsBytes) -> None:
        """It is about to be written."""
        seq = getattr(frame, "seq", 0)
        if seq:
            self._handed = seq

    @property
    def next(self) -> int:
        """Number of the first frame that waits; 0 if none does."""
        return self._handed + 1 if self._queued > self._handed else 0

    def check(self, acknowledged: int) -> None:
        """Raise WireError if the peer acknowledges a frame that still waits: it would fill this queue and read nothing."""
        first = self.next
        if 0 < first <= acknowledged:
            raise WireError(f"peer acknowledges frame {acknowledged}, but frame {first} has not gone out yet")
