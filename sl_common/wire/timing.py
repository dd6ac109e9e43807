"""A client's measurements of one step.

They are sent beside a message, not in it, because the coordinator must not see a clock.
"""

from __future__ import annotations

from dataclasses import dataclass

from sl_common.errors import WireError
from sl_common.proto import split_pb2 as pb

MAX_PHASE_S = 86_400.0  # of one phase; longer ones are cut to this
MAX_STEP = 1 << 40
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
        """Convert to protobuf.

        Phases longer than MAX_PHASE_S are cut to it, since a client may wait that long for its turn.
        """
        return pb.Timing(step=self.step, **{phase: min(getattr(self, phase), MAX_PHASE_S) for phase in _PHASES})

    @classmethod
    def from_header(cls, t: pb.Timing) -> Timing:
        """Convert from protobuf.

        Raises WireError on a time that no phase can have taken, before it is added to any sum.
        """
        for phase in _PHASES:
            seconds = getattr(t, phase)
            if not 0 <= seconds <= MAX_PHASE_S:  # False for NaN, too
                raise WireError(
                    f"timing says that {phase} took {seconds} s, between 0 and {MAX_PHASE_S:g} s are possible"
                )
        if t.step > MAX_STEP:
            raise WireError(f"timing is of step {t.step}, there are at most {MAX_STEP}")
        return cls(step=t.step, **{phase: getattr(t, phase) for phase in _PHASES})
