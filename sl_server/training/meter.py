"""Measures of each step: bytes into the ledger, phases into the ledger and the metrics.

Law: nothing is counted while a reply waits for it. Counting is put off, in order, until `flush`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

from sl_common.messages.training import Gradient, Message, Smashed, ToClient
from sl_common.wire import Frame, Received, Timing
from sl_server.telemetry.ledger import Direction, Ledger, WireTally
from sl_server.telemetry.metrics import Metrics


@dataclass(kw_only=True, slots=True)
class StepTimes:
    """The times of one client's last batch, in seconds of `time.perf_counter`; kept with its session."""

    client: str
    arrived: float = 0.0  # when its last frame was put into the inbox
    decoded: float = 0.0
    queued_s: float = 0.0  # in the inbox
    decode_s: float = 0.0
    encode_s: float = 0.0  # of its reply
    residence_s: dict[int, float] = field(default_factory=dict)  # step -> arrival of the batch to reply handed over


@dataclass(frozen=True, kw_only=True, slots=True)
class StepSpan:
    """Times of `time.perf_counter` around one turn of the coordinator and the encoding of one of its replies."""

    started: float  # the turn
    computed: float
    encoding: float  # the reply
    encoded: float


class Meter:
    """The measures of one run."""

    def __init__(self, ledger: Ledger, metrics: Metrics) -> None:
        self._ledger = ledger
        self._metrics = metrics
        self._later: list[Callable[[], object]] = []

    def sent(self, times: StepTimes, frames: Iterable[Frame]) -> None:
        """Count frames that were sent."""
        self._later += [partial(self._tally, times, "down", frame.tally) for frame in frames]

    def received(self, times: StepTimes, received: Received, *, arrived: float, fed: float, decoded: float) -> None:
        """Count a frame that came in, and its message if it completes one."""
        self._later.append(partial(self._count_received, times, received, arrived, fed, decoded))

    def said(self, times: StepTimes, message: ToClient, span: StepSpan) -> None:
        """Count a message that was encoded."""
        self._later.append(partial(self._count_said, times, message, span))

    def flush(self) -> None:
        """Count what was put off."""
        later, self._later = self._later, []
        for count in later:
            count()

    def _tally(self, times: StepTimes, direction: Direction, tally: WireTally) -> None:
        self._ledger.tally(direction, tally)
        self._metrics.clients.row(times.client).wire[direction] += sum(nbytes for _, nbytes in tally)

    def _message(self, times: StepTimes, direction: Direction, message: Message) -> None:
        nbytes = self._ledger.message(direction, message)
        self._metrics.clients.row(times.client).payload[direction] += nbytes

    def _count_received(self, times: StepTimes, received: Received, arrived: float, fed: float, decoded: float) -> None:
        self._tally(times, "up", received.tally)
        if received.timing is not None:
            self._complete(times, received.timing)
        if received.message is None:
            return
        self._message(times, "up", received.message)
        if isinstance(received.message, Smashed):
            times.arrived, times.decoded = arrived, decoded
            times.queued_s, times.decode_s = fed - arrived, decoded - fed

    def _count_said(self, times: StepTimes, message: ToClient, span: StepSpan) -> None:
        self._message(times, "down", message)
        if isinstance(message, Gradient) and message.dz is not None:
            self._observe("queue_wait", times.queued_s + span.started - times.decoded)
            self._observe("server_compute", span.computed - span.started)
            times.encode_s = span.encoded - span.encoding
            times.residence_s = {message.step: span.encoded - times.arrived}

    def _observe(self, phase: str, seconds: float) -> None:
        self._metrics.observe(phase, seconds)
        self._ledger.timed(phase, max(0.0, seconds))

    def _complete(self, times: StepTimes, client: Timing) -> None:
        """Observe the phases of a step from the client's times and ours."""
        residence = times.residence_s.pop(client.step, None)
        if residence is None:
            return
        here = {
            "client_forward": client.forward,
            "client_backward": client.backward,
            "encode": client.encode,
            "decode": client.decode,
        }
        network = max(0.0, client.round_trip - residence)
        self._metrics.times(times.client, client=sum(here.values()), network=network, server=residence)
        here["encode"] += times.encode_s
        here["decode"] += times.decode_s
        for phase, seconds in here.items():
            self._observe(phase, seconds)
        self._observe("wire", network)
