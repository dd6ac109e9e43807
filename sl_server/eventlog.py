"""The opt-in event log (`--record`): every event the coordinator took, in order; and replaying one.

A bug report is an event log: the same events give the same weights, on any machine of the same kind.
"""

from __future__ import annotations

from pathlib import Path

import torch

from sl_common.config import RunConfig
from sl_common.errors import ConfigError
from sl_common.messages import Advanced, Event
from sl_common.network import Network
from sl_common.wire import eventlog
from sl_server.coordinator import Coordinator, Said


class EventLog:
    """Appends events to a file as they are handled."""

    def __init__(self, path: Path, config: RunConfig) -> None:
        self._file = path.open("wb")
        text = config.to_json().encode()
        self._file.write(len(text).to_bytes(4, "little") + text)

    def append(self, entry: tuple[str, Event | Advanced]) -> None:
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
    config = RunConfig.from_json(data[4 : 4 + length].decode())
    torch.set_num_threads(config.run.threads)
    coordinator = Coordinator(config, Network.build(config))
    said: Said = []
    for client, event in eventlog.load(data[4 + length :]):
        if isinstance(event, Advanced):
            said += coordinator.advance() or []
        else:
            coordinator.handle(client, event)
    return coordinator, said
