"""A client's connection to its server: one stream after the other, with growing pauses between the tries to open one.

Law: one thread uses a connection, any thread may interrupt it. Training and inference use the same connection and
differ in what they say on it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

from sl_client.transport.session import ClientMessage, ClientSession
from sl_client.transport.stream import ClientStream, StreamBroken
from sl_client.transport.tries import Tries
from sl_common.errors import CutlayerError
from sl_common.wire import Greeting, Hello
from sl_common.wire.incoming import CallKind

LONGEST_RETRY_S = 5.0  # longest pause between two tries
LONGEST_REOPEN_S = 0.5  # the same, once this server has greeted us
LEAVE_S = 3.0  # to tell the server that this client leaves


class Interrupted(Exception):
    """The user wants to stop; a training client has told the server if it could."""


class Forgotten(StreamBroken):
    """The server answers but does not know this session: it was restarted, or its grace period is over."""


class ConnectionEvents(Protocol):
    """Calls that a connection makes, from the thread that uses it."""

    def moved(self, up: int, down: int) -> None:
        """Count bytes on the wire."""
        ...

    def lost(self, why: str) -> None:
        """Report a broken stream; another one will be tried."""
        ...

    def waiting(self, server: str, why: str) -> None:
        """Report a try that failed; another one follows after a pause."""
        ...


class Connection:
    """The streams of one client to one server, and the tries to reach a lost server."""

    def __init__(
        self,
        server: str,
        connect: Callable[[str], ClientStream],
        *,
        call: CallKind,
        retry_s: float,
        events: ConnectionEvents,
    ) -> None:
        """`retry_s`: how long a lost server is looked for, counted from the last stream that was useful."""
        self._server, self._connect, self._call, self._events = server, connect, call, events
        self._tries = Tries(server, retry_s, LONGEST_RETRY_S)
        self._stop = threading.Event()
        self._was_greeted = False
        self._greeted_at = 0.0  # of `time.monotonic`
        self.useful = False  # this stream has served its purpose: if it breaks, the tries start over
        self.session = ClientSession(call, events.moved)

    def begin_session(self) -> None:
        """Start again with message number 1 on both sides; the stream stays open."""
        stream = self.session.stream
        self.session = ClientSession(self._call, self._events.moved, slow=self.session.slow)
        self.session.stream = stream

    def open(self, greet: Callable[[], object]) -> None:
        """Open a stream and call `greet`, again and again until that works, with jittered, growing pauses.

        Raises PeerLost when the time is over, Interrupted, Refused, or another error that `greet` raises.
        """
        self._tries.begin()
        was_slow = self.session.slow
        while True:
            self.check_interrupted()
            self.close()
            try:
                self.session.stream = self._connect(self._server)
                greet()
                return
            except Forgotten as error:
                self.close()
                self._stop.wait(self._tries.fruitless(str(error)))  # no pause the first time: the server is there
            except StreamBroken as error:
                self.close()
                self.check_interrupted()
                if self.session.slow and not was_slow:  # the server was there, and will send smaller frames
                    was_slow = True
                    self._tries.went_well()
                longest_s = LONGEST_REOPEN_S if self._was_greeted else LONGEST_RETRY_S
                pause_s = self._tries.failed(str(error), longest_s)
                self._events.waiting(self._server, str(error))
                self._stop.wait(pause_s)

    def greet(self, hello: Hello) -> Greeting:
        """Say hello on the new stream and return the server's greeting. Raises as `ClientSession.greet` does."""
        greeting = self.session.greet(hello)
        self._was_greeted, self._greeted_at = True, time.monotonic()
        return greeting

    def pause_after(self, error: StreamBroken, *, lived_s: float | None = None) -> None:
        """Report a broken stream and wait before the next one: not at all after a useful stream, else longer each time.

        A stream that was open for `lived_s` counts as useful. Raises PeerLost when the time is over, or Interrupted.
        """
        self.close()
        self.check_interrupted()
        self._events.lost(str(error))
        if self.useful or (lived_s is not None and time.monotonic() - self._greeted_at >= lived_s):
            self._tries.went_well()
        else:
            self._stop.wait(self._tries.fruitless(str(error)))
        self.useful = False

    def close(self) -> None:
        """End the stream, if there is one."""
        if self.session.stream is not None:
            self.session.stream.close()
            self.session.stream = None

    def say_last_anew(self, message: ClientMessage, greet: Callable[[], object]) -> None:
        """Send a message on a new stream, after the frames that the server lacks; give up after LEAVE_S."""
        self.session.endpoint.pack(message)  # sent by `greet`, which learns which frames the server lacks
        self.close()
        stream = self.session.stream = self._connect(self._server)
        watchdog = threading.Timer(LEAVE_S, stream.cancel)
        watchdog.start()
        try:
            greet()
            stream.finish()
        except (StreamBroken, CutlayerError):
            pass  # the server notices when its grace period is over
        finally:
            watchdog.cancel()

    def interrupt(self) -> None:
        """Make the thread that uses this connection raise Interrupted; from any thread."""
        self._stop.set()
        stream = self.session.stream
        if stream is not None:
            stream.cancel()

    def check_interrupted(self) -> None:
        """Raise Interrupted after `interrupt`."""
        if self._stop.is_set():
            raise Interrupted
