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

    def end(self, doing: Doing, now: float, said: Doing | None = None) -> None:
        """End an activity, if it was begun, as `said`."""
        start = self._open.pop(doing, None)
        if start is not None:
            self.spans.append(TimelineSpan(doing=said or doing, start=start, end=now))

    def leave(self, now: float) -> None:
        """End every activity as lost."""
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

    courses: dict[str, ClientTimeline] = field(default_factory=dict)
    back: list[float] = field(default_factory=list)
    end: float = 0.0

    @property
    def rows(self) -> list[ClientTimeline]:
        """Clients by shard."""
        return sorted(self.courses.values(), key=lambda course: (course.shard, course.client))


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
                    _course(found, name).begin("eval" if line.evaluate else "train", line.seconds)
            case RoundLine():
                for course in found.courses.values():
                    course.forget("train")  # the server trained on recorded activations in its place
            case RunLine(event="went_back"):
                found.back.append(line.seconds)
                for course in found.courses.values():
                    course.leave(line.seconds)
            case _:
                pass
    for course in found.courses.values():
        course.close(found.end)
    return found


def _course(found: Timeline, name: str) -> ClientTimeline:
    return found.courses.setdefault(name, ClientTimeline(client=name, shard=len(found.courses)))


def _client(found: Timeline, line: ClientLine) -> None:
    course, now = _course(found, line.client), line.seconds
    match line.event:
        case "client_joined":
            course.shard = line.shard
            course.joined.append(now)
            course.begin("here", now)
        case "client_left":
            course.leave(now)
            course.left.append(now)
        case "client_late":
            course.end("train", now, "lost")
            course.late.append(now)
        case "client_away":
            course.begin("away", now)
        case "client_back":
            course.end("away", now)
        case "client_done":
            course.end("train", now)
            course.end("eval", now)
