"""The opt-in event log (`--record`): every event the coordinator took, in order; and replaying one.

A bug report is an event log: the same events give the same weights, on any machine of the same kind.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path

import torch

from sl_common.config import RunConfig
from sl_common.errors import ConfigError
from sl_common.messages import Advanced, Logged, Restored, Saved
from sl_common.network import Network
from sl_common.segment import Tree
from sl_common.wire import eventlog
from sl_server.coordinator import Coordinator, Said


class EventLog:
    """Appends events to a file as they are handled."""

    def __init__(self, path: Path, config: RunConfig) -> None:
        self._file = path.open("wb")
        text = config.to_json().encode()
        self._file.write(len(text).to_bytes(4, "little") + text)

    def append(self, entry: tuple[str, Logged]) -> None:
        """One event of one client."""
        self._file.write(eventlog.dump(*entry))

    def close(self) -> None:
        """Everything is on disk."""
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
