"""File descriptors that a server needs: one for each client's connection, besides those of its own files and sockets.

Measured: a server that listens, with metrics and all files of a run, has 25. Each connection adds one, and a
checkpoint two while it is written. A client that comes back on another connection has two until the old one is given
up.
"""

from __future__ import annotations

import asyncio

from sl_common.config.run_config import RunConfig
from sl_common.host.descriptors import Room, Shortage, limit, make_room
from sl_common.host.http import CONNECTIONS
from sl_server.console.show import ServerConsole
from sl_server.storage.spill import SEGMENT

OWN = 32
DESCRIPTOR_LOOK_S = 1.0


def descriptors_for_run(config: RunConfig) -> Room:
    """Return the descriptors that a training server needs for the clients of its run."""
    recordings = -(-int(config.server.recordings.disk_mb * 1e6) // SEGMENT)  # files that stay open
    clients = config.run.clients
    least = OWN + clients + recordings
    spare = clients + config.server.limits.strangers + CONNECTIONS
    return Room(least=least, wanted=least + spare, what=f"{clients} client(s)")


def descriptors_for_inference(config: RunConfig) -> Room:
    """Return the descriptors that a server after a run needs; the number of its clients is only a guess."""
    spare = max(config.run.clients, 512) + config.server.limits.strangers + CONNECTIONS
    return Room(least=OWN + 1, wanted=OWN + config.run.clients + spare, what="clients that ask")


def claim_descriptors(show: ServerConsole, room: Room) -> None:
    """Raise this process's limit as far as `room` needs, and report that. Raises ConfigError if it cannot be enough."""
    text = make_room(room)
    if text is not None:
        show.say("descriptors", text, text=text, least=room.least, wanted=room.wanted, limit=limit())


async def watch_descriptors(shortage: Shortage) -> None:
    """Look again and again whether a descriptor is free, until cancelled."""
    while True:
        shortage.look()
        await asyncio.sleep(DESCRIPTOR_LOOK_S)
