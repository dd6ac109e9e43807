"""The training client's driver: one thread, no event loop.

It carries messages between a client program and the server.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection
from pathlib import Path

from sl_client.console.show import ClientConsole
from sl_client.device.limits import NO_LIMITS, DeviceLimits
from sl_client.training.seating import DeviceOptions, Seating
from sl_client.training.snapshots_on_disk import StateFolders
from sl_client.training.stopwatch import Stopwatch
from sl_client.transport.connection import Connection, Forgotten, Interrupted
from sl_client.transport.stream import ClientStream, GrpcStream, StreamBroken
from sl_common import __version__
from sl_common.client.flow import Flow
from sl_common.client.program import participate
from sl_common.client.seat import Seat
from sl_common.errors import ConfigError, CutlayerError, Diverged, Refused, WireError
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
from sl_common.wire import Hello

ALIVE_EVERY_S = 5.0
UNHEARD = 16  # unacknowledged messages after which signs of life are left out: they would add nothing
LIVED_S = 1.0  # a stream that was open for so long counts as useful, though the server had nothing to say


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
        allowed: Collection[str] | None = (),
        retry_s: float = 60.0,
        show: ClientConsole,
        connect: Callable[[str], ClientStream] = GrpcStream,
        state: Path | None = None,
        device: str | None = None,
        limits: DeviceLimits = NO_LIMITS,
    ) -> None:
        """`state`: a folder for snapshots that outlive this process.

        `device` and `limits`: choices of this device's owner.
        """
        self._server, self._name = server, name
        self._shard, self._shards = shard, shards
        self._show = show
        self._folders = StateFolders(state)
        options = DeviceOptions(data=data, allowed=allowed, device=device, limits=limits)
        self._seating = Seating(options, self._folders, show)
        self.connection = Connection(server, connect, call="train", retry_s=retry_s, events=show)
        self._begin_life()

    def _begin_life(self) -> None:
        """Start a session and a program for it: at first, and whenever the server has forgotten this client."""
        self.connection.begin_session()
        self._life = secrets.token_bytes(16)
        self._flow = Flow(participate(self._take_seat))
        self._watch = Stopwatch()
        self._greeted = False
        self._streams = 0  # tried in this life
        self._alive_at = time.monotonic()

    def _take_seat(self, welcome: Welcome) -> Seat:
        return self._seating.take(welcome, self._name, self.connection.session.endpoint, self._watch.span)

    @property
    def seat(self) -> Seat | None:
        """This client's place in the run, as soon as it has one."""
        return self._seating.seat

    def interrupt(self) -> None:
        """Leave the run, from another thread: `run` tells the server and raises Interrupted."""
        self.connection.interrupt()

    def run(self) -> Bye:
        """Take part until the server says Bye.

        Raises Refused, PeerLost, Interrupted, or ConfigError if this device cannot take part (the server is told).
        """
        try:
            self._folders.lock_name(self._server, self._name)
            while True:
                self.connection.open(self._greet)
                try:
                    bye = self._converse()
                    self.connection.session.finish()
                    return bye
                except StreamBroken as error:
                    self.connection.pause_after(error, lived_s=LIVED_S)
        except ConfigError as error:
            self._leave(f"cannot take part: {error}")
            raise
        except Interrupted:
            self._leave_interrupted()
            raise
        except Diverged as error:
            self._leave(f"failed: {error}")
            raise
        except WireError as error:  # the server need not wait for a client that does not accept its messages
            self._leave(f"refuses what the server said: {error}")
            raise
        except CutlayerError:
            raise
        except (Exception, SystemExit) as error:  # a bug, or the user's own code: the server need not wait either
            self._leave(f"failed: {error!r}")
            if isinstance(error, SystemExit):  # it would end this process as if it were done
                raise CutlayerError(
                    f"code that this client computes with called sys.exit({error.code!r:.80})"
                ) from error
            raise
        finally:
            self.connection.close()

    def leave_state(self, *, finished: bool) -> None:
        """Release the folder for snapshots; if the run has finished, remove its snapshots."""
        if finished and self.seat is not None:
            self._folders.forget(self.seat.snapshots.run)
        self._folders.close()

    def _greet(self) -> None:
        session = self.connection.session
        hello = Hello(
            life=self._life,
            client=self._name,
            received=session.endpoint.received,
            resume=self._greeted,
            shard=self._shard,
            shards=self._shards,
            software=__version__,
            stream=self._streams,
            slow=session.slow,
        )
        self._streams += 1
        try:
            greeting = self.connection.greet(hello)
        except Refused as error:
            if error.code != "forgotten" or not self._greeted:
                raise
            self._show.forgotten()
            self._begin_life()
            raise Forgotten(error.reason) from None
        if not greeting.client or self._name not in ("", greeting.client):
            raise WireError(f"the server calls this client {greeting.client!r}, its name is {self._name!r}")
        self._greeted, self._name = True, greeting.client
        session.resume(greeting.received)

    def _leave(self, reason: str) -> None:
        """Tell the server, as far as the stream still carries it; else it notices when its grace period is over."""
        if self._greeted:
            self.connection.session.say_last(Leave(reason=reason[:MAX_REASON]))

    def _leave_interrupted(self) -> None:
        """Tell the server on a new stream, since `interrupt` broke the last one."""
        if self._greeted and self._flow.ended is None:
            self.connection.say_last_anew(Leave(reason="stopped by its user"), self._greet)

    def _converse(self) -> Bye:
        session = self.connection.session
        while True:
            for message in self._flow.run():
                self._say(message)
            if self._flow.ended is not None:
                session.raise_break()  # the server does not know yet that its Bye has come
                self._show.ended(self._flow.ended)
                return self._flow.ended
            incoming = session.receive()
            self._watch.add("decode", incoming.decode_s)
            self._watch.add("round_trip", incoming.round_trip_s)
            self._take(incoming.message)

    def _say(self, message: ToServer) -> None:
        self.connection.check_interrupted()
        session, timing = self.connection.session, None
        match message:
            case Alive():
                now = time.monotonic()
                if now - self._alive_at < ALIVE_EVERY_S or session.endpoint.unacknowledged >= UNHEARD:
                    return
                self._alive_at = now
            case Smashed():
                self._show.batch_sent()
                if message.train and message.needs_grad:
                    timing = self._watch.next_step(message.step)
            case Done():
                self._watch.reset()
                self._show.done(message)
        self._watch.add("encode", session.say(message, timing))

    def _take(self, message: ToClient) -> None:
        if not isinstance(message, Welcome):
            self.connection.useful = True
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
