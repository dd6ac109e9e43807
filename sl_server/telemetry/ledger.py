"""What is counted in a run: bytes as they were sent and received, never estimated, on the wire with framing and as what the tensors
would take as float32; and the seconds of its steps by phase."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Literal

from sl_common.messages.training import WIRE_KINDS, Message, WireKind, payload_of
from sl_common.wire import Frame

Direction = Literal["up", "down"]  # up: from clients to the server
WireTally = Iterable[tuple[WireKind, int]]


class Ledger:
    """Counts for one run. `wire` is serialized gRPC messages with their 5-byte prefix; resent frames count again."""

    def __init__(self) -> None:
        self.wire: Counter[tuple[Direction, WireKind]] = Counter()
        self.payload: Counter[tuple[Direction, WireKind]] = Counter()
        self._phases: dict[str, tuple[int, float]] = {}  # of this round: steps, and their seconds together

    def tally(self, direction: Direction, tally: WireTally) -> None:
        """A frame went this way."""
        for kind, nbytes in tally:
            self.wire[direction, kind] += nbytes

    def message(self, direction: Direction, message: Message) -> int:
        """A message went this way, once however often its frames were resent; its bytes."""
        counted = payload_of(message)
        for kind, nbytes in counted.items():
            self.payload[direction, kind] += nbytes
        return sum(counted.values())

    def timed(self, phase: str, seconds: float) -> None:
        """A phase of one step took so long."""
        steps, before = self._phases.get(phase, (0, 0.0))
        self._phases[phase] = steps + 1, before + seconds

    def take_phases(self) -> tuple[int, dict[str, float]]:
        """Steps that were timed since this was asked last, and the mean seconds of each phase that there was."""
        phases, self._phases = self._phases, {}
        steps = max((steps for steps, _ in phases.values()), default=0)
        return steps, {phase: seconds / n for phase, (n, seconds) in phases.items()}

    def snapshot(self) -> list[tuple[str, str, str, int]]:
        """All counts, for a checkpoint."""
        both = (("wire", self.wire), ("payload", self.payload))
        return [(which, *key, n) for which, counts in both for key, n in sorted(counts.items())]

    def restore(self, rows: list[tuple[str, Direction, WireKind, int]]) -> None:
        """Go on from counts of a checkpoint; what was sent between it and its process's end is lost."""
        for which, direction, kind, n in rows:
            (self.wire if which == "wire" else self.payload)[direction, kind] = n

    def count(self, direction: Direction, sent: Frame | Message) -> None:
        """Either of the two."""
        if isinstance(sent, Frame):
            self.tally(direction, sent.tally)
        else:
            self.message(direction, sent)

    def by_direction(self, which: Literal["wire", "payload"]) -> dict[str, dict[str, int]]:
        """{"up": {kind: bytes}, "down": …}, kinds that never occurred left out."""
        counts = self.wire if which == "wire" else self.payload
        return {
            direction: {kind: n for (d, kind), n in sorted(counts.copy().items()) if d == direction}
            for direction in ("up", "down")
        }

    def total(self, direction: Direction) -> int:
        """Wire bytes of one direction; from any thread."""
        return sum(self.wire[direction, kind] for kind in WIRE_KINDS)
