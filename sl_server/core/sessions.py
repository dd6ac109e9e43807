"""The sessions of a run: the endpoint of each client, who may open one, and the end of a session that broke a rule.

They know no stream: the engine carries frames between endpoints over gRPC, the simulator in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from sl_common import __version__
from sl_common.errors import Refused, Unfit, WireError
from sl_common.messages.events import Advanced, Event, Failed, Joined, Left, Logged, Restored, Saved, Stopped, Tick
from sl_common.messages.training import Aligned, Leave, Ready, ToServer
from sl_common.training.segment import Tree
from sl_common.wire import Endpoint, Frame, Greeting, Hello, Received
from sl_server.core.coordinator import Coordinator
from sl_server.core.digests import AdvanceDigests
from sl_server.core.identity import StreamIdentity, admit
from sl_server.core.outbox import Turn

NOBODY_ASKS = StreamIdentity()


@dataclass(kw_only=True, eq=False)
class Session:
    """One life of one client."""

    client: str
    life: bytes
    endpoint: Endpoint
    stream: int = 0  # number of its newest stream, counted by the client
    replaced: bool = False  # another life of the client has taken its name
    closed: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """An accepted Hello."""

    session: Session
    greeting: Greeting
    resend: list[Frame]
    replaces: Session | None  # the session of an earlier life of the same name


class EventSink(Protocol):
    """A log of events."""

    def append(self, entry: tuple[str, Logged], /) -> None:
        """Write one event of one client."""
        ...


class Sessions:
    """All sessions of one run. Not locked: one thread calls; nothing here blocks."""

    def __init__(self, coordinator: Coordinator, incarnation: int) -> None:
        self.coordinator = coordinator
        self.incarnation = incarnation
        self.by_client: dict[str, Session] = {}
        self.log: EventSink | None = None  # if set, every event is written down here
        self._digests = AdvanceDigests(coordinator)
        self._residuals: dict[str, dict[str, Tensor]] = {}  # of endpoints whose clients are not back after a restart

    def open(self, hello: Hello, identity: StreamIdentity = NOBODY_ASKS) -> Opened:
        """Resume the session of this life or begin a new one. Raises Refused or WireError; other sessions go on.

        Where clients prove their identity, only the client that opened a session may resume it.
        """
        hello.check_version()
        client = admit(hello.client, identity)
        session = next((s for s in self.by_client.values() if s.life == hello.life), None)
        if session is not None:
            if client not in ("", session.client):
                raise Refused("identity", f"this life is client {session.client!r}, not {client!r}")
            if 0 < hello.stream <= session.stream:  # an old Hello: the client has received more since
                raise Refused(
                    "replaced", f"stream {hello.stream} of this life; stream {session.stream} was opened before"
                )
            session.stream = hello.stream
            return self._opened(session, hello, resumed=True)
        if hello.resume:
            raise Refused("forgotten", "this server has no session of yours any more: join again")
        name, shard = self.coordinator.place(client, hello.shard, hello.shards)
        before = self.by_client.get(name)
        most = self.coordinator.config.server.limits.sessions
        if before is None and len(self.by_client) >= most:
            raise Refused("full", f"{most} clients are here, server.limits.sessions = {most}")
        if before is not None:
            before.replaced = True
            self._left(before, "a new life of the same client has come")
        network, config = self.coordinator.network, self.coordinator.config
        draw = config.draw_of(shard)
        most, tensors, window = network.limit_bytes, network.limit_tensors, config.client.window
        endpoint = Endpoint(
            "server", link=config.codec, limit_bytes=most, limit_tensors=tensors, draw=draw, window=window
        )
        session = Session(client=name, life=hello.life, endpoint=endpoint, stream=hello.stream)
        self._handle(name, Joined(shard=shard, shards=hello.shards))
        self.by_client[name] = session
        return self._opened(session, hello, resumed=False, replaces=before)

    def _opened(self, session: Session, hello: Hello, *, resumed: bool, replaces: Session | None = None) -> Opened:
        resend = session.endpoint.resend(hello.received if resumed else 0, slow=hello.slow)
        greeting = Greeting(
            client=session.client,
            received=session.endpoint.received,
            resumed=resumed,
            incarnation=self.incarnation,
            software=__version__,
        )
        return Opened(session=session, greeting=greeting, resend=resend, replaces=replaces)

    def feed(self, session: Session, data: bytes) -> Received:
        """Take one frame and hand a whole message to the coordinator.

        Raises WireError if the client broke a rule, Refused if it holds what it must not; it has left then.
        """
        try:
            received = session.endpoint.feed(data)
        except WireError as error:
            self._left(session, f"broke the protocol: {error}")
            raise
        if received.message is not None:
            self.take(session, received.message)  # type: ignore[arg-type]
        return received

    def take(self, session: Session, message: ToServer) -> None:
        """Take a whole message, which may never have been a frame; raises as `feed` does."""
        try:
            self._handle(session.client, message)
        except WireError as error:
            did = "cannot take part" if isinstance(error, Unfit) else "broke the protocol"
            self._left(session, f"{did}: {error}")
            raise
        except Refused as error:
            self._left(session, f"refused: {error.reason}")
            raise
        if isinstance(message, Ready):
            self._restore_residuals(session)
        if isinstance(message, Leave):
            self._forget(session)

    def _restore_residuals(self, session: Session) -> None:
        """Give a client that goes on from a checkpoint the error feedback of the server's encodings for it."""
        member = self.coordinator.roster[session.client]
        if member.restore or member.intact:
            session.endpoint.residuals.update(self._residuals.pop(session.client, {}))

    def snapshot(self) -> Tree:
        """Return the state of the coordinator between two waves, and the error feedback of its clients' endpoints."""
        residuals = {name: dict(session.endpoint.residuals) for name, session in self.by_client.items()}
        return {"run": self.coordinator.run, "coordinator": self.coordinator.snapshot(), "residuals": residuals}

    def tick(self, now: float) -> None:
        """Tell the coordinator the time, in seconds since the run began."""
        self._handle("", Tick(now=now))

    def saved(self) -> None:
        """Tell the coordinator that its present state was made durable."""
        self._handle("", Saved(number=self.coordinator.completed_waves))

    def restore(self, tree: Tree, now: float = 0.0) -> None:
        """Go back to a snapshot. All sessions are forgotten, and their clients join anew."""
        for session in self.by_client.values():
            session.closed = True
        self.by_client.clear()
        self._residuals = {name: dict(residuals) for name, residuals in tree["residuals"].items()}
        self.coordinator.restore(tree["coordinator"], now)
        self._write("", Restored(number=self.coordinator.completed_waves, now=now))

    def lose(self, session: Session, reason: str) -> None:
        """End the session of a client that was away for too long, or was refused."""
        self._left(session, reason)

    def _left(self, session: Session, reason: str) -> None:
        if not session.closed:
            self._forget(session)
            self._handle(session.client, Left(reason=reason))

    def _forget(self, session: Session) -> None:
        session.closed = True
        if self.by_client.get(session.client) is session:
            del self.by_client[session.client]

    def advance(self) -> Turn:
        """Let the coordinator work, and return what came of it."""
        try:
            turn = self.coordinator.advance()
        except Exception as error:
            self._write("", Advanced())
            self._failed(error)
            raise
        if turn.worked and self.log is not None:
            self.log.append(("", self._digests.of(turn)))
        return turn

    def stop(self, reason: str) -> None:
        """End the run before its last round."""
        self.coordinator.stop(reason)
        self._write("", Stopped(reason=reason))

    def end_expelled(self, turn: Turn) -> list[tuple[Session, WireError]]:
        """End the sessions of the clients that a turn expelled. Return them with the errors to refuse them by."""
        found = []
        for name, why in turn.expelled:
            session = self.by_client.get(name)
            if session is not None:
                self._forget(session)
                found.append((session, WireError(why)))
        return found

    def aligned(self, client: str, result: Aligned) -> None:
        """Hand the result of a job to the coordinator."""
        self._handle(client, result)

    def _handle(self, client: str, event: Event) -> None:
        try:
            self.coordinator.handle(client, event)
        except (Refused, WireError):  # nothing has changed
            raise
        except Exception as error:
            self._write(client, event)
            self._failed(error)
            raise
        self._write(client, event)

    def _failed(self, error: Exception) -> None:
        self._write("", Failed(error=f"{type(error).__name__}: {error}"))

    def _write(self, client: str, event: Logged) -> None:
        if self.log is not None:
            self.log.append((client, event))
