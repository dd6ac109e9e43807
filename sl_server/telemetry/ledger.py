"""Counts of a run: bytes sent and received, and seconds of its steps by phase.

Bytes are counted, never estimated: on the wire with framing, and as the size that the tensors would have as float32.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Literal

from sl_common.messages.training import Message
from sl_common.wire import Frame
from sl_common.wire.accounting import WIRE_KINDS, WireKind, payload_of

Direction = Literal["up", "down"]  # "up" is from clients to the server
WireTally = Iterable[tuple[WireKind, int]]


class Ledger:
    """Counts for one run. `wire` is serialized gRPC messages with their 5-byte prefix; resent frames count again."""

    def __init__(self) -> None:
        self.wire: Counter[tuple[Direction, WireKind]] = Counter()
        self.payload: Counter[tuple[Direction, WireKind]] = Counter()
        # of this round, by phase: number of steps, sum of their seconds
        self._phases: dict[str, tuple[int, float]] = {}

    def tally(self, direction: Direction, tally: WireTally) -> None:
        """Count a frame."""
        for kind, nbytes in tally:
            self.wire[direction, kind] += nbytes

    def message(self, direction: Direction, message: Message) -> int:
        """Count a message, once however often its frames are resent, and return its bytes."""
        counted = payload_of(message)
        for kind, nbytes in counted.items():
            self.payload[direction, kind] += nbytes
        return sum(counted.values())

    def timed(self, phase: str, seconds: float) -> None:
        """Add the seconds of one phase of one step."""
        steps, before = self._phases.get(phase, (0, 0.0))
        self._phases[phase] = steps + 1, before + seconds

    def take_phases(self) -> tuple[int, dict[str, float]]:
        """Return the number of steps timed since the last call, and the mean seconds of each phase that occurred."""
        phases, self._phases = self._phases, {}
        steps = max((steps for steps, _ in phases.values()), default=0)
        return steps, {phase: seconds / n for phase, (n, seconds) in phases.items()}

    def snapshot(self) -> list[tuple[str, str, str, int]]:
        """Return all counts, for a checkpoint."""
        both = (("wire", self.wire), ("payload", self.payload))
        return [(which, *key, n) for which, counts in both for key, n in sorted(counts.items())]

    def restore(self, rows: list[tuple[str, Direction, WireKind, int]]) -> None:
        """Set the counts of a checkpoint; bytes sent after it are lost."""
        for which, direction, kind, n in rows:
            (self.wire if which == "wire" else self.payload)[direction, kind] = n

    def count(self, direction: Direction, sent: Frame | Message) -> None:
        """Count a frame or a message."""
        if isinstance(sent, Frame):
            self.tally(direction, sent.tally)
        else:
            self.message(direction, sent)

    def by_direction(self, which: Literal["wire", "payload"]) -> dict[str, dict[str, int]]:
        """Return {"up": {kind: bytes}, "down": …}, without kinds that never occurred."""
        counts = self.wire if which == "wire" else self.payload
        return {
            direction: {kind: n for (d, kind), n in sorted(counts.copy().items()) if d == direction}
            for direction in ("up", "down")
        }

    def total(self, direction: Direction) -> int:
        """Return the wire bytes of one direction; callable from any thread."""
        return sum(self.wire[direction, kind] for kind in WIRE_KINDS)
