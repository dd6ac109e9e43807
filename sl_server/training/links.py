"""The links of a run: clients that come, are heard, go away, come back and are refused, on the streams of the moment.

Law: called in the engine's thread alone. A session outlives its streams; whatever ends a session tells the coordinator.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from sl_common.errors import Refused, WireError
from sl_common.messages.facts import ClientAway, ClientBack, Fact
from sl_common.messages.training import ToClient
from sl_common.wire import Hello
from sl_server.core.identity import StreamIdentity, admit
from sl_server.core.outbox import Turn
from sl_server.core.sessions import Opened, Session, Sessions
from sl_server.telemetry.metrics import Metrics
from sl_server.training.client_link import ClientLink
from sl_server.training.link_table import LinkTable
from sl_server.training.meter import Meter, StepSpan, StepTimes
from sl_server.transport.deadlines import Deadlines, look_every_s
from sl_server.transport.refusals import Refusals, as_refused
from sl_server.transport.streams import Stream


class Links:
    """All links of one run."""

    def __init__(
        self,
        sessions: Sessions,
        *,
        meter: Meter,
        metrics: Metrics,
        refusals: Refusals,
        on_fact: Callable[[Fact], None],
        now: Callable[[], float],
    ) -> None:
        """`now` reads the clock of all deadlines, in seconds."""
        self._sessions = sessions
        self._run = sessions.coordinator.config.run
        self._limits = sessions.coordinator.config.server.limits
        self._meter, self._refusals = meter, refusals
        self._on_fact, self._now = on_fact, now
        self._table = LinkTable(metrics)
        self._next_look = 0.0
        self.all_told = False  # the run is over, and every client was sent its Bye

    def __len__(self) -> int:
        return len(self._table)

    @property
    def streams(self) -> list[Stream]:
        """Open streams of clients that have a session."""
        return list(self._table.by_stream)

    # --- events of streams, from the inbox

    def open(self, stream: Stream, hello: bytes, identity: StreamIdentity) -> None:
        """Begin or resume the session of a client, or refuse it."""
        client = next(iter(identity.certificate or ()), "")
        try:
            said = Hello.from_frame(hello)
            client = said.client or client
            opened = self._sessions.open(said, identity)
        except (Refused, WireError) as error:
            self._refusals.refuse(stream, client, error)
            return
        if opened.replaces is not None:
            self._replace(opened.replaces)
        self._attach(stream, opened)

    def feed(self, stream: Stream, frame: bytes, arrived: float) -> None:
        """Take a frame of a client and send what is due after it."""
        link = self._table.by_stream.get(stream)
        if link is None:
            return
        fed = time.perf_counter()
        link.deadlines.heard(self._now())
        link.heard_at = fed
        try:
            received = self._sessions.feed(link.session, frame)
            stream.outgoing.check(link.session.endpoint.acknowledged)
        except (Refused, WireError) as error:
            self._expel(link, as_refused(error))
            return
        self._meter.received(link.times, received, arrived=arrived, fed=fed, decoded=time.perf_counter())
        link.acknowledge()
        if link.session.closed:  # it said Leave
            self._table.drop(link)
            stream.close()

    def check_identity(self, stream: Stream, identity: StreamIdentity) -> None:
        """Refuse a client that its transport does not admit any more."""
        link = self._table.by_stream.get(stream)
        if link is None:
            return
        try:
            admit(link.session.client, identity)
        except Refused as error:
            reason = error.reason if error.code == "revoked" else f"not admitted any more: {error.reason}"
            self._expel(link, Refused("revoked", reason))

    def lose(self, stream: Stream) -> None:
        """Keep the session of a client whose stream is gone for its grace period."""
        link = self._table.by_stream.get(stream)
        if link is None:
            return
        if self.all_told and link.session.endpoint.all_acknowledged:
            self._table.drop(link)  # it has its Bye
            return
        self._table.detach(link, self._now() + link.delay_s(self._limits.dead_s))
        self._on_fact(ClientAway(client=link.session.client))

    # --- for the engine

    def say(self, client: str, message: ToClient, started: float, computed: float) -> Stream | None:
        """Encode and send a message to a client. Return its stream, or None if it has none.

        `started` and `computed` are the times at which the work behind the message began and ended.
        """
        session = self._sessions.by_client.get(client)
        if session is None:
            return None
        link, encoding = self._table.by_session[session], time.perf_counter()
        try:
            frames = session.endpoint.pack(message)
        except WireError as error:  # the client acknowledges nothing, and all would have to be kept
            self._expel(link, as_refused(error))
            return None
        span = StepSpan(started=started, computed=computed, encoding=encoding, encoded=time.perf_counter())
        link.send(frames)
        self._meter.said(link.times, message, span)
        return link.stream

    def refuse(self, client: str, error: Refused) -> None:
        """End the session of a client and refuse it, if it is still here."""
        session = self._sessions.by_client.get(client)
        link = None if session is None else self._table.by_session.get(session)
        if link is not None:
            self._expel(link, error)

    def refuse_expelled(self, turn: Turn) -> None:
        """Refuse the clients that the coordinator's work has expelled."""
        for session, error in self._sessions.end_expelled(turn):
            link = self._table.by_session.get(session)
            if link is not None:
                self._table.drop(link)
                if link.stream is not None:
                    self._refusals.refuse(link.stream, session.client, error)

    def drop_all(self) -> None:
        """Close all streams and forget all links; the sessions are not told."""
        for link in self._table.links:
            self._table.drop(link)
            if link.stream is not None:
                link.stream.close()

    def look_after(self, now: float) -> None:
        """End the sessions of clients that were away for too long or do not answer in time."""
        grace = self._run.grace_s
        for link in self._table.links:
            if link.stream is None and now - link.away_since > grace:
                self._table.drop(link)
                self._sessions.lose(link.session, f"away for more than grace_s = {grace:g} s")
        if now < self._next_look:
            return
        self._next_look = now + look_every_s(self._limits)
        for link in self._table.links:
            owes = self._sessions.coordinator.owes(link.session.client)
            link.acknowledge()
            error = link.fault(now, owes=owes)
            if error is not None and not link.spare(error):
                self._expel(link, error)

    # --- sessions and streams

    def _attach(self, stream: Stream, opened: Opened) -> None:
        """Have a stream carry a session from now on."""
        session = opened.session
        link = self._table.by_session.get(session)
        if link is None:
            times, deadlines = StepTimes(client=session.client), Deadlines(self._limits, self._now())
            link = ClientLink(session=session, stream=stream, times=times, deadlines=deadlines, meter=self._meter)
            self._refusals.joined(session.client)
            self._table.add(link, stream)
        else:
            if link.stream is None:
                self._on_fact(ClientBack(client=session.client))
            self._table.move(link, stream)
        link.heard_at = time.perf_counter()
        stream.send([opened.greeting.to_frame()])
        link.send(opened.resend)

    def _replace(self, session: Session) -> None:
        link = self._table.by_session.get(session)
        if link is None:
            return
        self._table.drop(link)
        if link.stream is not None:
            reason = f"another client has joined as {session.client!r}"
            self._refusals.refuse(link.stream, session.client, Refused("replaced", reason))

    def _expel(self, link: ClientLink, error: Refused) -> None:
        """End a session, and its stream if there is one."""
        self._table.drop(link)
        self._sessions.lose(link.session, error.reason)
        if link.stream is not None:
            self._refusals.refuse(link.stream, link.session.client, error)
