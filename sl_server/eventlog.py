"""The opt-in event log (`--record`): every event the coordinator took, in order; and replaying one.

A bug report is an event log: the same events give the same weights, on any machine of the same kind.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from sl_common.config import RunConfig
from sl_common.errors import ConfigError
from sl_common.messages import Advanced, Logged, Restored, Saved
from sl_common.network import Network
from sl_common.segment import Tree
from sl_common.wire import eventlog
from sl_server.coordinator import Coordinator, Said
from sl_server.growing import GrowingFile

GROWN = 1_000_000_000  # bytes of an event log between two lines that say how large it is


class EventLog:
    """Appends events to a file as they are handled. A log with a gap could not be replayed: it ends before one."""

    def __init__(self, path: Path, config: RunConfig, say: Callable[[str], None] = lambda _text: None) -> None:
        """`say` is told how large the log has grown, at each gigabyte, and why it ends early. Raises ConfigError."""
        try:
            self._file = GrowingFile(path)
        except OSError as error:
            raise ConfigError(f"--record: {path}: {error.strerror or error}") from error
        self._say = say
        self._told = 0  # gigabytes
        self.complete = True
        text = config.to_json().encode()
        self._file.append(len(text).to_bytes(4, "little") + text)

    def append(self, entry: tuple[str, Logged]) -> None:
        """One event of one client."""
        if not self.complete:
            return
        self._file.append(eventlog.dump(*entry))
        if self._file.lost:
            self.complete = False
            self._say(f"{self._file.path} ends here: the disk took none of the last {self._file.waiting:,} bytes")
        if self._file.length >= (self._told + 1) * GROWN:
            self._told = self._file.length // GROWN
            self._say(f"{self._file.path} has {self._file.length / 1e9:.1f} GB: --record keeps every activation")

    def sync(self) -> None:
        """Make it durable so far. Raises OSError."""
        self._file.sync()

    def close(self) -> None:
        """Write what there is."""
        self._file.close()


def replay(path: Path) -> tuple[Coordinator, Said]:
    """Feed a recorded log to a fresh coordinator: it, and everything it said."""
    data = path.read_bytes()
    length = int.from_bytes(data[:4], "little")
    if len(data) < 4 + length:
        raise ConfigError(f"{path}: not an event log")
    config = RunConfig.from_json(data[4 : 4 + length].decode(errors="replace"))
    torch.set_num_threads(config.run.threads)
    coordinator = Coordinator(config, Network.build(config))
    return coordinator, replay_events(coordinator, eventlog.load(data[4 + length :]))


def replay_events(coordinator: Coordinator, events: Iterable[tuple[str, Logged]]) -> Said:
    """What a coordinator says to these events; it keeps its own snapshots where the run kept checkpoints."""
    said: Said = []
    kept: dict[int, Tree] = {}
    for client, event in events:
        match event:
            case Advanced():
                said += coordinator.advance() or []
            case Restored(number=number, now=now):
                if number not in kept:
                    raise ConfigError(f"the event log goes back to checkpoint {number}, which was made before it began")
                coordinator.restore(kept[number], now)
            case _:
                if isinstance(event, Saved):
                    kept[event.number] = copy.deepcopy(coordinator.snapshot())
                coordinator.handle(client, event)
    return said
