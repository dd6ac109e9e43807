"""A client's measures of one step. They ride beside a frame, never inside a message: the coordinator must not see a clock."""

from __future__ import annotations

from dataclasses import dataclass

from sl_common.errors import WireError
from sl_common.proto import split_pb2 as pb

MAX_PHASE_S = 86_400.0  # of one phase: a longer one says nothing about training
MOST_STEPS = 1 << 40
_PHASES = ("forward", "encode", "round_trip", "decode", "backward")


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
        """For a ClientFrame. A client may wait for its turn for longer than MOST_S; that is then what it says."""
        return pb.Timing(step=self.step, **{phase: min(getattr(self, phase), MAX_PHASE_S) for phase in _PHASES})

    @classmethod
    def from_header(cls, t: pb.Timing) -> Timing:
        """From a ClientFrame. Raises WireError on a number that no phase can have taken, before it is in anybody's sums."""
        for phase in _PHASES:
            seconds = getattr(t, phase)
            if not 0 <= seconds <= MAX_PHASE_S:  # neither is NaN
                raise WireError(
                    f"timing says that {phase} took {seconds} s, between 0 and {MAX_PHASE_S:g} s are possible"
                )
        if t.step > MOST_STEPS:
            raise WireError(f"timing is of step {t.step}, there are at most {MOST_STEPS}")
        return cls(step=t.step, **{phase: getattr(t, phase) for phase in _PHASES})
