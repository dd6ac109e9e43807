"""A TCP proxy that cuts connections at random times: what a bad network does to a run, which must end with the same bits.

LISTEN and TO are HOST:PORT, EVERY the mean seconds that a connection lives, SEED what the times are drawn from.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass on what comes, until one side ends."""
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()


async def main() -> None:
    """Serve until SIGTERM."""
    host, _, port = os.environ["LISTEN"].rpartition(":")
    to_host, _, to_port = os.environ["TO"].rpartition(":")
    every, draws = float(os.environ["EVERY"]), random.Random(int(os.environ["SEED"]))

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        life = draws.expovariate(1 / every)
        try:
            far_reader, far_writer = await asyncio.open_connection(to_host, int(to_port))
        except OSError:  # the server is away: so are we
            writer.close()
            return
        pumps = [asyncio.create_task(pump(reader, far_writer)), asyncio.create_task(pump(far_reader, writer))]
        done, _pending = await asyncio.wait(pumps, timeout=life, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            print(f"cut a connection after {life:.1f} s", flush=True)
        for one in pumps:
            one.cancel()
        for end in (writer, far_writer):
            if done:
                end.close()
            else:
                end.transport.abort()  # a reset, with what was under way lost

    over = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    async with await asyncio.start_server(carry, host, int(port)):
        await over.wait()


if __name__ == "__main__":
    asyncio.run(main())
