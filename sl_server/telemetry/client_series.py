"""Metrics of each client, for a limited number of clients: a run with thousands of them must not overload Prometheus.

Law: summed over all rows, a counter never falls and equals the run's. Clients beyond the limit share one row. When a
new client needs a row, it gets that of a client that has left, whose counts move to the shared row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from sl_server.telemetry.ledger import Direction

OTHERS = "/others"  # no client has this name: a name has no '/'
PLACES = ("client", "network", "server")  # the parts of a step's time
SeriesSample = tuple[str, float]  # the text after the family's name (suffix and labels), and the value


def _both() -> dict[Direction, int]:
    return {"up": 0, "down": 0}


@dataclass(kw_only=True, slots=True, eq=False)
class ClientCounters:
    """Counts of one client since the server's process began, or of all clients without a row of their own; they never
    fall."""

    joined: bool = False  # True between joining and leaving
    wire: dict[Direction, int] = field(default_factory=_both)  # bytes
    payload: dict[Direction, int] = field(default_factory=_both)  # bytes
    steps: int = 0
    samples: int = 0
    reconnects: int = 0
    late: int = 0
    left: int = 0
    connected: int = 0  # open streams
    timed: int = 0  # steps whose time was measured
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PLACES, 0.0))
    wave_s: float | None = None  # seconds from the start to the end of its last training wave
    accuracy: float | None = None  # on its slice of the test set, or of its own network

    def absorb(self, other: ClientCounters) -> None:
        """Add another row's counts to this one's."""
        for way in self.wire:
            self.wire[way] += other.wire[way]
            self.payload[way] += other.payload[way]
        for place in PLACES:
            self.seconds[place] += other.seconds[place]
        for name, _ in COUNTERS.values():
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.timed += other.timed
        self.connected += other.connected


COUNTERS = {
    "sl_client_steps_total": ("steps", "Batches of this client that the head has learned from"),
    "sl_client_samples_total": ("samples", "Training samples of this client that the head has learned from"),
    "sl_client_reconnects_total": ("reconnects", "Sessions of this client that were resumed on a new stream"),
    "sl_client_late_total": ("late", "Waves that went on without this client because it was too slow"),
    "sl_client_left_total": ("left", "How often this client left before the end"),
}
GAUGES = {
    "sl_client_connected": ("connected", "1 while this client has an open stream, 0 while it is away or has left"),
    "sl_client_wave_seconds": ("wave_s", "From the start of this client's last training wave to its end"),
    "sl_client_accuracy": (
        "accuracy",
        "Accuracy, 0 to 1, on this client's share of the held-out data, or of its own network",
    ),
}
BYTES: dict[str, Callable[[ClientCounters], dict[Direction, int]]] = {
    "wire": lambda row: row.wire,
    "payload": lambda row: row.payload,
}
STEP = (
    "One training step of this client, by where its time went: on the client, under way, at the server with its queue"
)


class ClientSeries:
    """The rows of one run. The engine's thread writes them, a scrape reads them."""

    def __init__(self, limit: int) -> None:
        """`limit`: number of clients with a row of their own."""
        self._limit = limit
        # Own rows in order of arrival, and the shared row. The pair is replaced as one value, so that no scrape sees a
        # client in both or in neither.
        self._table: tuple[dict[str, ClientCounters], ClientCounters | None] = ({}, None)

    def row(self, client: str) -> ClientCounters:
        """Return the row that counts this client."""
        rows, others = self._table
        return rows.get(client) or others or self._new(client)

    def connected(self, client: str, change: int) -> None:
        """Record that a stream of this client was opened (+1), which may give it a row of its own, or closed (-1)."""
        row = self._table[0].get(client) or self._new(client) if change > 0 else self.row(client)
        row.joined = row.joined or change > 0
        row.connected += change

    def _new(self, client: str) -> ClientCounters:
        rows, others = dict(self._table[0]), self._table[1]
        if len(rows) >= self._limit:
            gone = next((name for name, row in rows.items() if not row.joined and not row.connected), None)
            shared = ClientCounters()
            for row in (others, None if gone is None else rows.pop(gone)):
                if row is not None:
                    shared.absorb(row)
            others = shared
        if len(rows) < self._limit:
            rows[client] = ClientCounters()
        self._table = rows, others
        return self.row(client)

    def left(self, client: str) -> None:
        """Record that a client left before the end of the run."""
        row = self.row(client)
        row.joined = False
        row.left += 1

    def scored(self, client: str, accuracy: float) -> None:
        """Record a client's accuracy; clients that share a row have none."""
        row = self.row(client)
        if row is not self._table[1]:
            row.accuracy = accuracy

    def text(self) -> str:
        """Return all series in Prometheus' text format, clients in order of arrival, then the shared row.

        Written by hand: prometheus_client takes ten times as long for the thousands of lines of a large run.
        """
        own, others = self._table
        rows = [(f'client="{_escaped(name)}"', row) for name, row in own.items()]
        if others is not None:
            rows.append((f'client="{OTHERS}"', others))
        families: list[str] = []
        for which, counts in BYTES.items():
            help_text = f"This client's part of sl_{which}_bytes_total"
            ways = ((f'{{{who},direction="{way}"}}', n) for who, row in rows for way, n in counts(row).items())
            families.append(_family(f"sl_client_{which}_bytes_total", "counter", help_text, ways))
        for kind, described in (("counter", COUNTERS), ("gauge", GAUGES)):
            for name, (attribute, help_text) in described.items():
                values = ((f"{{{who}}}", getattr(row, attribute)) for who, row in rows)
                families.append(
                    _family(name, kind, help_text, ((who, value) for who, value in values if value is not None))
                )
        families.append(_family("sl_client_step_seconds", "summary", STEP, _times(rows)))
        return "".join(families)


def _family(name: str, kind: str, help_text: str, series: Iterable[SeriesSample]) -> str:
    lines = [f"{name}{labels} {value}\n" for labels, value in series]
    return "".join([f"# HELP {name} {help_text}\n# TYPE {name} {kind}\n", *lines])


def _times(rows: list[tuple[str, ClientCounters]]) -> Iterator[SeriesSample]:
    for who, row in rows:
        for place, seconds in row.seconds.items():
            yield f'_count{{{who},place="{place}"}}', row.timed
            yield f'_sum{{{who},place="{place}"}}', seconds


def _escaped(name: str) -> str:
    """Escape a label's value; a name has no line break."""
    return name.replace("\\", "\\\\").replace('"', '\\"')
