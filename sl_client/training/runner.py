"""The client's driver: one thread, no event loop. It carries a flow's messages over a stream and outlives broken streams."""

from __future__ import annotations

import contextlib
import secrets
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol, TypeVar

from sl_client.console.progress import Counted
from sl_client.console.show import ClientConsole
from sl_client.device.limits import NO_LIMITS, DeviceLimits, device_for
from sl_client.device.pages import drop_clean_pages
from sl_client.training.seat import take_seat
from sl_client.training.snapshots_on_disk import Past
from sl_client.transport.stream import ClientStream, GrpcCarrier, StreamBroken
from sl_client.transport.tries import Tries
from sl_common import __version__
from sl_common.client.flow import Flow
from sl_common.client.orders import check_welcome
from sl_common.client.program import participate
from sl_common.client.seat import Seat
from sl_common.client.snapshots import Snapshots
from sl_common.codec import Link
from sl_common.config.run_config import RunConfig
from sl_common.errors import ConfigError, CutlayerError, Diverged, Refused, WireError
from sl_common.exits import HAND_OVER_S
from sl_common.host.signals import hang_up
from sl_common.messages.training import (
    Aligned,
    Alive,
    Begin,
    Bye,
    Done,
    Gradient,
    Late,
    Leave,
    Smashed,
    ToClient,
    ToServer,
    Welcome,
)
from sl_common.names import MAX_REASON
from sl_common.wire import SLOW_S, Endpoint, Frame, Hello, Refusal, Timing, read_answer
from sl_common.wire.accounting import GRPC_PREFIX

ALIVE_EVERY_S = 5.0
UNHEARD = 16  # messages that the server has not acknowledged: more of them say nothing that these do not
LONGEST_RETRY_S = 5.0  # between two looks for a server
LIVED_S = 1.0  # a stream that was there for so long was one
SOON_S = 0.5  # at most, between two looks for a server that was there
LEAVE_S = 3.0  # for telling the server that we go
_FIRST_LIMIT = 1 << 20  # bytes of a message body before the run is known


class Forgotten(StreamBroken):
    """The server is there, but knows us no more: it has been restarted, or went on without us."""


class Interrupted(Exception):
    """The user wants to stop, and the server was told if it could be."""


class _Span:
    """Adds the time inside to a phase."""

    __slots__ = ("_phase", "_started", "_watch")

    def __init__(self, watch: Stopwatch, phase: str) -> None:
        self._watch, self._phase, self._started = watch, phase, 0.0

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *_error: object) -> None:
        self._watch.add(self._phase, time.perf_counter() - self._started)


class Stopwatch:
    """Seconds by phase of the step under way; the segments' spans report here."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._step: int | None = None
        self._forward = 0.0

    def span(self, phase: str) -> _Span:
        """Add the time inside to a phase."""
        return _Span(self, phase)

    def add(self, phase: str, seconds: float) -> None:
        """Add to a phase."""
        self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds

    def reset(self) -> None:
        """Forget the step under way."""
        self._seconds.clear()
        self._step = None

    def turn(self, step: int) -> Timing | None:
        """A step's batch goes out: what the step before it took, if there was one.

        By now the forward pass of this step is over, and so is the backward pass of the one before.
        """
        s, self._seconds = self._seconds, {}
        before = None
        if self._step is not None:
            before = Timing(
                step=self._step,
                forward=self._forward,
                encode=s.get("encode", 0.0),
                round_trip=s.get("round_trip", 0.0),
                decode=s.get("decode", 0.0),
                backward=s.get("backward", 0.0) + s.get("step", 0.0),
            )
        self._step, self._forward = step, s.get("forward", 0.0)
        return before


class Runner:
    """One client process's part in a run, over as many streams as it takes."""

    def __init__(
        self,
        server: str,
        *,
        name: str = "",
        shard: int | None = None,
        shards: int | None = None,
        data: Path | None = None,
        allowed: Collection[str] = (),
        retry_s: float = 60.0,
        show: ClientConsole,
        connect: Callable[[str], ClientStream] = GrpcCarrier,
        state: Path | None = None,
        device: str | None = None,
        limits: DeviceLimits = NO_LIMITS,
    ) -> None:
        """`state`: a folder in which snapshots outlive this process; `device` and `limits`: what its owner says, and allows."""
        self._past_on_disk = Past(state)
        self._limits = limits
        self._device = device
        self._server = server
        self._name = name
        self._shard, self._shards = shard, shards
        self._data, self._allowed = data, allowed
        self._show = show
        self._connect = connect
        self._carrier: ClientStream | None = None
        self._stop = threading.Event()
        self.seat: Seat | None = None
        self._was_greeted = False  # in any life
        self._tries = Tries(server, retry_s, LONGEST_RETRY_S)
        self._opened_at = 0.0
        self._brought = False  # this stream brought more than a Welcome
        self._slow = False  # the link was seen to be
        self._heard_at = 0.0
        self._begin_life()

    def _begin_life(self) -> None:
        """What a process is when it starts; also when the server has forgotten us."""
        self._life = secrets.token_bytes(16)
        self._endpoint = Endpoint("client", link=Link(), limit_bytes=_FIRST_LIMIT, limit_tensors=0)
        self._flow = Flow(participate(self._sit))
        self._watch = Stopwatch()
        self._greeted = False
        self._streams = 0  # that were tried
        self._words: deque[ToClient] = deque()  # heard while something was still going out
        self._broke: StreamBroken | None = None  # meanwhile
        self._asked_at = 0.0
        self._alive_at = time.monotonic()

    def _sit(self, welcome: Welcome) -> Seat:
        if welcome.client != self._name:
            raise WireError(f"welcome is for {welcome.client!r}, this client is {self._name!r}")
        check_welcome(welcome)
        config = RunConfig.from_json(welcome.config)
        self._limits.set_threads(config)
        drop_clean_pages()  # that the start has read
        seat = take_seat(
            welcome,
            data=self._data,
            allowed=self._allowed,
            span=self._watch.span,
            snapshots=self._past(welcome),
            limits=self._limits,
            sole=True,
            device=device_for(config, self._device, self._show.warn),
        )
        draw, most = config.draw_of(welcome.shard), seat.limit_bytes
        window, tensors = config.client.window, seat.limit_tensors
        self._endpoint.agree(config.codec, most, draw, seat.residuals, window, limit_tensors=tensors)
        drop_clean_pages()  # that building has read
        seat = replace(seat, data=Counted(seat.data, self._show.batch))
        self.seat = seat
        self._show.seated(welcome, seat)
        return seat

    def _past(self, welcome: Welcome) -> Snapshots:
        """What this client has of this run from before: in this process, or on disk."""
        before = self.seat
        if before is None or before.snapshots.run != welcome.run or before.shard != welcome.shard:
            return self._past_on_disk.find(welcome.run, welcome.client, self._show.warn)
        return before.final_snapshots()

    def interrupt(self) -> None:
        """Leave the run, from another thread: `run` tells the server and raises Interrupted."""
        self._stop.set()
        carrier = self._carrier
        if carrier is not None:
            carrier.cancel()

    def run(self) -> Bye:
        """Take part until the server says Bye.

        Raises Refused, PeerLost, Interrupted, or ConfigError if this device cannot take part (the server is told).
        """
        try:
            self._past_on_disk.hold_name(self._server, self._name)
            while True:
                self._open_stream()
                try:
                    bye = self._converse()
                    self._part()
                    return bye
                except StreamBroken as error:
                    quiet_s = time.perf_counter() - max(self._heard_at, self._asked_at)
                    self._slow = quiet_s > SLOW_S or self._endpoint.sends_small_frames
                    self._close()
                    self._heed_stop()
                    self._show.lost(str(error))
                    self._end_of_stream(str(error))
        except ConfigError as error:
            self._say_leave(f"cannot take part: {error}")
            raise
        except Interrupted:
            self._leave_anew("stopped by its user")
            raise
        except Diverged as error:
            self._say_leave(f"failed: {error}")
            raise
        except WireError as error:  # what the server said is not for us: it need not wait
            self._say_leave(f"refuses what the server said: {error}")
            raise
        except CutlayerError:
            raise
        except (Exception, SystemExit) as error:  # a bug, or the user's own code: the server need not wait for us
            self._say_leave(f"failed: {error!r}")
            if isinstance(error, SystemExit):  # which would end this process as if it were done
                raise CutlayerError(
                    f"code that this client computes with called sys.exit({error.code!r:.80})"
                ) from error
            raise
        finally:
            self._close()

    def leave_state(self, *, finished: bool) -> None:
        """Let go of the folder for snapshots; nothing stays in it of a run that is over as it was meant to be."""
        if finished and self.seat is not None:
            self._past_on_disk.forget(self.seat.snapshots.run)
        self._past_on_disk.close()

    # --- streams

    def _end_of_stream(self, why: str) -> None:
        """A stream that lived, or brought more than a Welcome, is followed by another at once."""
        if self._brought or time.monotonic() - self._opened_at >= LIVED_S:
            self._tries.went_well()
        else:
            self._stop.wait(self._tries.fruitless(why))
        self._brought = False

    def _open_stream(self) -> None:
        """A stream that the server has greeted. Tries again with jittered, growing pauses; raises PeerLost in the end."""
        self._tries.begin()
        while True:
            self._heed_stop()
            try:
                self._carrier = self._connect(self._server)
                self._greet(self._carrier)
                return
            except Forgotten as error:
                self._close()  # it waits for us: join anew at once, unless it says so again and again
                self._stop.wait(self._tries.fruitless(str(error)))
            except StreamBroken as error:
                self._close()
                pause = self._tries.failed(str(error), SOON_S if self._was_greeted else LONGEST_RETRY_S)
                self._heed_stop()
                self._show.waiting(self._server, str(error))
                self._stop.wait(pause)

    def _greet(self, carrier: ClientStream) -> None:
        hello = Hello(
            life=self._life,
            client=self._name,
            received=self._endpoint.received,
            resume=self._greeted,
            shard=self._shard,
            shards=self._shards,
            software=__version__,
            stream=self._streams,
            slow=self._slow,
        )
        self._streams += 1
        carrier.send(hello.to_frame())
        answer = read_answer(carrier.receive())
        if isinstance(answer, Refusal) and answer.code == "forgotten" and self._greeted:
            self._show.forgotten()
            self._begin_life()
            raise Forgotten(answer.reason)
        if isinstance(answer, Refusal):
            raise Refused(answer.code, answer.reason)
        answer.check_version()
        if not answer.client or self._name not in ("", answer.client):
            raise WireError(f"the server calls this client {answer.client!r}, its name is {self._name!r}")
        self._greeted = self._was_greeted = True
        self._heard_at = time.perf_counter()
        self._name = answer.client
        self._opened_at = time.monotonic()
        self._send(self._endpoint.resend(answer.received, slow=self._slow))

    def _send(self, frames: Sequence[Frame]) -> None:
        assert self._carrier is not None
        for frame in frames:
            self._carrier.send(frame)
            self._show.moved(sum(nbytes for _, nbytes in frame.tally), 0)

    def _close(self) -> None:
        if self._carrier is not None:
            self._carrier.close()
            self._carrier = None

    def _part(self) -> None:
        """Let the server know that we have its Bye, so that it need not wait for us."""
        assert self._carrier is not None
        last = self._endpoint.acknowledgement(at_once=True)
        self._send([last] if last else [])
        self._carrier.finish()

    def _say_leave(self, reason: str) -> None:
        """As far as the stream still carries it; the server finds out by itself otherwise."""
        if self._carrier is None or not self._greeted:
            return
        with contextlib.suppress(StreamBroken, WireError):
            self._send(self._endpoint.pack(Leave(reason=reason[:MAX_REASON])))
            self._carrier.finish()

    def _leave_anew(self, reason: str) -> None:
        """Say so on a stream of its own, since the last one was broken off; give up soon if nobody listens."""
        if not self._greeted or self._flow.ended is not None:
            return
        self._endpoint.pack(Leave(reason=reason))  # sent by the greeting, after whatever the server lacks
        self._close()
        carrier = self._carrier = self._connect(self._server)
        watchdog = threading.Timer(LEAVE_S, carrier.cancel)
        watchdog.start()
        try:
            self._greet(carrier)
            carrier.finish()
        except (StreamBroken, CutlayerError):
            pass  # the server finds out after its grace period
        finally:
            watchdog.cancel()

    def _heed_stop(self) -> None:
        if self._stop.is_set():
            raise Interrupted

    # --- the conversation

    def _converse(self) -> Bye:
        while True:
            for message in self._flow.run():
                self._say(message)
            if self._flow.ended is not None:
                self._show.ended(self._flow.ended)
                return self._flow.ended
            if self._broke is not None:
                broke, self._broke = self._broke, None
                raise broke
            while not self._words:
                self._hear()
            self._take(self._words.popleft())

    def _say(self, message: ToServer) -> None:
        self._heed_stop()
        timing = None
        match message:
            case Alive():
                now = time.monotonic()
                if now - self._alive_at < ALIVE_EVERY_S or self._endpoint.unacknowledged >= UNHEARD:
                    return
                self._alive_at = now
            case Smashed():
                self._show.asked()
                if message.train and message.needs_grad:
                    timing = self._watch.turn(message.step)
            case Done():
                self._watch.reset()
                self._show.done(message)
        with self._watch.span("encode"):
            frames = self._endpoint.pack(message, timing=timing)
        self._asked_at = time.perf_counter()
        self._send(frames)
        if self._endpoint.holds_frames:
            self._see_off()

    def _see_off(self) -> None:
        """Computing waits until all has gone out: on a slow link that is what takes long, and whoever computes hears nothing."""
        try:
            while self._endpoint.holds_frames:
                self._hear()
        except StreamBroken as error:
            self._broke = error  # what was said is said, and goes out on the next stream

    def _hear(self) -> None:
        assert self._carrier is not None
        data = self._carrier.receive()
        heard = self._heard_at = time.perf_counter()
        received = self._endpoint.feed(data)
        self._show.moved(0, len(data) + GRPC_PREFIX)
        self._carrier.check(self._endpoint.acknowledged)
        due = self._endpoint.due(heard)
        if due:
            self._send(due)
        self._watch.add("decode", time.perf_counter() - heard)
        if received.message is not None:
            self._watch.add("round_trip", heard - self._asked_at)
            self._words.append(received.message)  # type: ignore[arg-type]
            self._endpoint.check_waiting(len(self._words))

    def _take(self, message: ToClient) -> None:
        self._brought = self._brought or not isinstance(message, Welcome)
        match message:
            case Begin():
                self._watch.reset()
                self._show.begin(message)
            case Gradient():
                self._show.step(message)
            case Aligned():
                self._show.aligned(message)
            case Late():
                self._show.late(message)
            case _:
                pass
        self._flow.deliver(message)


T_co = TypeVar("T_co", covariant=True)


class Interruptible(Protocol[T_co]):
    """Something long that can be told to stop."""

    def run(self) -> T_co:
        """To its end; raises Interrupted after `interrupt`."""
        ...

    def interrupt(self) -> None:
        """From another thread."""
        ...


def run_until_interrupted(runner: Interruptible[T_co]) -> T_co:
    """Run in a thread while this one, which must be the main thread, waits for signals.

    An exception that a signal raises inside gRPC may leave its locks held; here none can be. SIGINT, SIGTERM and SIGHUP end the run
    with Interrupted, a second one ends the process.
    """
    outcome: list[T_co | BaseException] = []
    over = threading.Event()  # an interrupted Thread.join believes that the thread has ended

    def run() -> None:
        try:
            outcome.append(runner.run())
        except BaseException as error:  # handed to the main thread
            outcome.append(error)
        finally:
            over.set()

    sys.setswitchinterval(HAND_OVER_S)
    for number in (signal.SIGTERM, *hang_up()):
        signal.signal(number, signal.default_int_handler)
    thread = threading.Thread(target=run, name="runner", daemon=True)
    thread.start()
    try:
        over.wait()
    except KeyboardInterrupt:
        runner.interrupt()
        over.wait(3 * LEAVE_S)
        raise Interrupted from None
    (result,) = outcome
    if isinstance(result, BaseException):
        raise result
    return result
