"""A client's measures of one step. They ride beside a frame, never inside a message: the coordinator must not see a clock."""

from __future__ import annotations

from dataclasses import dataclass

from sl_common.proto import split_pb2 as pb


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """Seconds that one step spent in each phase on the client."""

    step: int
    forward: float
    encode: float
    round_trip: float
    decode: float
    backward: float

    def to_header(self) -> pb.Timing:
        """For a ClientFrame."""
        return pb.Timing(
            step=self.step,
            forward=self.forward,
            encode=self.encode,
            round_trip=self.round_trip,
            decode=self.decode,
            backward=self.backward,
        )

    @classmethod
    def from_header(cls, t: pb.Timing) -> Timing:
        """From a ClientFrame."""
        return cls(
            step=t.step,
            forward=t.forward,
            encode=t.encode,
            round_trip=t.round_trip,
            decode=t.decode,
            backward=t.backward,
        )
