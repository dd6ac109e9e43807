"""Descriptors that a server needs: one for each client's connection, beside files and sockets of its own.

Measured: a server that listens, with metrics and all files of a run, has 25; each connection adds one, and a checkpoint two
while it is written. A client that comes back on another connection has two until the old one is given up.
"""

from __future__ import annotations

import asyncio

from sl_common.config.run_config import RunConfig
from sl_common.host.descriptors import Room, Shortage
from sl_common.host.http import CONNECTIONS
from sl_server.storage.spill import SEGMENT

OWN = 32
DESCRIPTOR_LOOK_S = 1.0


def descriptors_for_run(config: RunConfig) -> Room:
    """A run of so many clients."""
    recordings = -(-int(config.server.recordings.disk_mb * 1e6) // SEGMENT)  # files that stay open
    clients = config.run.clients
    least = OWN + clients + recordings
    spare = clients + config.server.limits.strangers + CONNECTIONS
    return Room(least=least, wanted=least + spare, what=f"{clients} client(s)")


def descriptors_for_inference(config: RunConfig) -> Room:
    """A server that answers after a run: as many may ask as have trained, but nobody knows."""
    spare = max(config.run.clients, 512) + config.server.limits.strangers + CONNECTIONS
    return Room(least=OWN + 1, wanted=OWN + config.run.clients + spare, what="those who ask")


async def watch_descriptors(shortage: Shortage) -> None:
    """Look whether one is free, as long as the server runs."""
    while True:
        shortage.look()
        await asyncio.sleep(DESCRIPTOR_LOOK_S)
