"""When each client trained, evaluated, was away, left and came back, from the facts that a run wrote. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from sl_server.report.past import ClientLine, FactLine, RoundLine, RunLine, WaveLine

Doing = Literal["here", "train", "eval", "lost", "away"]  # lost: a wave that was begun and not finished


@dataclass(frozen=True, kw_only=True, slots=True)
class TimelineSpan:
    """A span of time, in seconds since the first wave began."""

    doing: Doing
    start: float
    end: float


@dataclass(kw_only=True, slots=True)
class ClientTimeline:
    """One client's part of a run."""

    client: str
    shard: int
    spans: list[TimelineSpan] = field(default_factory=list)
    joined: list[float] = field(default_factory=list)
    left: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    _open: dict[Doing, float] = field(default_factory=dict)

    def begin(self, doing: Doing, now: float) -> None:
        """Begin an activity."""
        self._open[doing] = now

    def end(self, doing: Doing, now: float, outcome: Doing | None = None) -> None:
        """End an activity, if it was begun, as `outcome` (default: the activity itself)."""
        start = self._open.pop(doing, None)
        if start is not None:
            self.spans.append(TimelineSpan(doing=outcome or doing, start=start, end=now))

    def leave(self, now: float) -> None:
        """End every activity; an unfinished wave is lost."""
        for doing in ("train", "eval"):
            self.end(doing, now, "lost")
        self.end("away", now)
        self.end("here", now)

    def close(self, now: float) -> None:
        """End every activity at the end of the data."""
        for doing in tuple(self._open):
            self.end(doing, now)

    def forget(self, doing: Doing) -> None:
        """Drop an activity, as if it had never begun."""
        self._open.pop(doing, None)


@dataclass(kw_only=True, slots=True)
class Timeline:
    """All clients, by shard, and the times when the run went back to a checkpoint."""

    clients: dict[str, ClientTimeline] = field(default_factory=dict)
    back: list[float] = field(default_factory=list)
    end: float = 0.0

    @property
    def rows(self) -> list[ClientTimeline]:
        """Clients by shard."""
        return sorted(self.clients.values(), key=lambda client: (client.shard, client.client))


def timeline(lines: Iterable[FactLine]) -> Timeline:
    """Order a run's facts, in the order in which they were written, into a timeline."""
    found = Timeline()
    for line in lines:
        found.end = max(found.end, line.seconds)
        match line:
            case ClientLine():
                _client(found, line)
            case WaveLine():
                for name in line.clients:
                    _timeline_of(found, name).begin("eval" if line.evaluate else "train", line.seconds)
            case RoundLine():
                for client in found.clients.values():
                    client.forget("train")  # the server trained on recorded activations in its place
            case RunLine(event="went_back"):
                found.back.append(line.seconds)
                for client in found.clients.values():
                    client.leave(line.seconds)
            case _:
                pass
    for client in found.clients.values():
        client.close(found.end)
    return found


def _timeline_of(found: Timeline, name: str) -> ClientTimeline:
    return found.clients.setdefault(name, ClientTimeline(client=name, shard=len(found.clients)))


def _client(found: Timeline, line: ClientLine) -> None:
    client, now = _timeline_of(found, line.client), line.seconds
    match line.event:
        case "client_joined":
            client.shard = line.shard
            client.joined.append(now)
            client.begin("here", now)
        case "client_left":
            client.leave(now)
            client.left.append(now)
        case "client_late":
            client.end("train", now, "lost")
            client.late.append(now)
        case "client_away":
            client.begin("away", now)
        case "client_back":
            client.end("away", now)
        case "client_done":
            client.end("train", now)
            client.end("eval", now)
