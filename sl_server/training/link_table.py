"""The table of a run's links, by session and by stream; the metrics of connected clients follow it."""

from __future__ import annotations

from sl_server.core.sessions import Session
from sl_server.telemetry.metrics import Metrics
from sl_server.training.client_link import ClientLink
from sl_server.transport.streams import Stream


class LinkTable:
    """Links of clients that have a session; an open stream carries one of them. Others only read the dictionaries."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.by_session: dict[Session, ClientLink] = {}
        self.by_stream: dict[Stream, ClientLink] = {}

    def __len__(self) -> int:
        return len(self.by_session)

    @property
    def links(self) -> list[ClientLink]:
        """All links as of now."""
        return list(self.by_session.values())

    def add(self, link: ClientLink, stream: Stream) -> None:
        """Add the link of a new session."""
        self.by_session[link.session] = link
        self._metrics.connected(link.times.client, 1)
        self._carry(link, stream)

    def move(self, link: ClientLink, stream: Stream) -> None:
        """Have another stream carry a link; the one before, if it is still open, is closed."""
        self._metrics.reconnected(link.times.client)
        if link.stream is None:
            self._metrics.away(-1)
            self._metrics.connected(link.times.client, 1)
        else:
            del self.by_stream[link.stream]
            link.stream.close()
        self._carry(link, stream)

    def _carry(self, link: ClientLink, stream: Stream) -> None:
        link.stream = stream
        self.by_stream[stream] = link

    def detach(self, link: ClientLink, away_since: float) -> None:
        """Record that the stream of a link is gone, and its client away."""
        self._unbind(link)
        link.stream, link.away_since = None, away_since
        self._metrics.away(1)

    def drop(self, link: ClientLink) -> None:
        """Forget a link. Its stream, if it has one, is left open, so that a last frame can be sent."""
        del self.by_session[link.session]
        if link.stream is None:
            self._metrics.away(-1)
        else:
            self._unbind(link)

    def _unbind(self, link: ClientLink) -> None:
        if link.stream is not None:
            del self.by_stream[link.stream]
            self._metrics.connected(link.times.client, -1)
