"""One client's session and the stream that carries it now; frames are sent and deadlines kept here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from sl_common.errors import Refused
from sl_common.wire import Frame
from sl_server.core.sessions import Session
from sl_server.training.meter import Meter, StepTimes
from sl_server.transport.deadlines import Deadlines
from sl_server.transport.streams import MAX_UNWRITTEN, Stream

_QUIET_SHARE = 0.6  # of `dead_s`: after so long without a frame, the end of a stream may reach the client late


@dataclass(kw_only=True, slots=True, eq=False)
class ClientLink:
    """A session and its stream. Times are of the engine's clock unless said otherwise."""

    session: Session
    stream: Stream | None  # None while the client is away
    times: StepTimes
    deadlines: Deadlines
    meter: Meter
    away_since: float = 0.0
    heard_at: float = 0.0  # time.perf_counter() of the last frame
    spared_at: int = -1  # frames received when `spare` last ended the stream

    def send(self, frames: Sequence[Frame]) -> None:
        """Send frames and count them; without a stream do nothing: the session sends them again on its next one."""
        if self.stream is None:
            return
        self.stream.send(frames)
        self.meter.sent(self.times, frames)

    def acknowledge(self) -> None:
        """Send the acknowledgement that is due, unless the client does not read what it was sent."""
        if self.stream is None or self.stream.waiting >= MAX_UNWRITTEN:
            return
        due = self.session.endpoint.due(time.perf_counter())
        if due:
            self.send(due)

    def fault(self, now: float, *, owes: bool) -> Refused | None:
        """Return why the client is not waited for any longer, or None. `owes`: it is the client's turn to speak."""
        stream = self.stream
        held = stream is None or stream.held or stream.posted != stream.taken
        written = 0 if stream is None else stream.written
        return self.deadlines.fault(self.session.endpoint.missing, now, owes=owes, held=held, written=written)

    def spare(self, error: Refused) -> bool:
        """End the stream of a slow client instead of refusing the client, if small frames may help. Return True if so.

        An ordinary frame may take longer on its way than a message may stand still. A client that has lost its stream
        comes back with small frames.
        """
        endpoint, stream = self.session.endpoint, self.stream
        if (
            error.code != "slow"
            or endpoint.receives_small_frames
            or stream is None
            or endpoint.received <= self.spared_at
        ):
            return False
        self.spared_at = endpoint.received
        self.deadlines.spare()
        stream.close()
        return True

    def delay_s(self, dead_s: float) -> float:
        """Return how many seconds after the server the client may learn that its stream is broken.

        If no frame came for about as long as gRPC waits for the answer to a ping (`dead_s`), the frames that were sent
        may still be on a slow link, outside this machine's buffers, and the end of the stream behind them.
        """
        quiet_s = time.perf_counter() - self.heard_at
        return dead_s if quiet_s > _QUIET_SHARE * dead_s and not self.session.endpoint.all_acknowledged else 0.0
