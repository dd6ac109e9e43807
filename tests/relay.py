"""A TCP relay on loopback that can be disturbed: links that are cut, slow, thin, truncated or swallow everything.

Law: bytes pass unchanged and in order, or their connection ends. A fault is told when it has hit something, not when it is armed.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PIECE = 16 << 10  # bytes read at once
RATE = 4 << 20  # bytes a second each way while nothing is wrong
Told = Callable[[str], None]


class _Connection:
    """Both ends of one connection of a client."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter | None) -> None:
        self.ends = [client] if server is None else [client, server]
        self.swallowed = False

    def abort(self) -> None:
        for end in self.ends:
            end.transport.abort()


class Relay:
    """What one client has instead of the server's address. Faults may come from any thread, while others still last."""

    def __init__(self, loop: asyncio.AbstractEventLoop, server: str, told: Told) -> None:
        self._loop, self._told = loop, told
        self._server = server.rpartition(":")
        self._connections: set[_Connection] = set()
        self._rate = RATE
        self._delay_s = 0.0
        self._left: int | None = None  # bytes that still pass before the link breaks
        self._hole = False
        self._untold: set[str] = set()  # faults that have hit nothing yet
        self._tasks: set[asyncio.Task[None]] = set()
        self.address = ""

    # --- faults

    def cut(self) -> None:
        """All connections end at once."""
        self._do(self._cut)

    def delay(self, seconds: float, for_s: float) -> None:
        """Every piece takes so much longer."""
        self._do(self._set, "delay", for_s, "_delay_s", seconds, 0.0)

    def halve(self, for_s: float) -> None:
        """Half the bandwidth."""
        self._do(self._set, "bandwidth", for_s, "_rate", self._rate // 2, RATE)

    def truncate(self, nbytes: int) -> None:
        """After so many more bytes the link breaks, wherever in a message that is."""
        self._do(self._set, "truncate", None, "_left", nbytes, None)

    def black_hole(self, for_s: float) -> None:
        """Connections are accepted, bytes are taken, nothing comes out; when it is over, what lost bytes is dead."""
        self._do(self._set, "black hole", for_s, "_hole", True, False)

    def forget(self, for_s: float | None = None) -> None:
        """As a router that lost its table: connections carry nothing any more, not even that the other end has closed its own.

        New ones do. After so long the old ones are reset; without, never.
        """
        self._do(self._forget, for_s)

    def _do(self, what: Callable[..., None], *args: object) -> None:
        self._loop.call_soon_threadsafe(what, *args)

    def _cut(self) -> None:
        if self._connections:
            self._told("cut")
        for connection in list(self._connections):
            connection.abort()

    def _forget(self, for_s: float | None) -> None:
        self._untold.add("black hole")
        for connection in self._connections:
            connection.swallowed = True
        if for_s is not None:
            self._loop.call_later(for_s, self._reset)

    def _reset(self) -> None:
        for connection in list(self._connections):
            if connection.swallowed:
                connection.abort()

    def _set(self, fault: str, for_s: float | None, name: str, value: object, healed: object) -> None:
        setattr(self, name, value)
        self._untold.add(fault)
        if for_s is not None:
            self._loop.call_later(for_s, self._heal, fault, name, healed)

    def _heal(self, fault: str, name: str, healed: object) -> None:
        setattr(self, name, healed)
        self._untold.discard(fault)
        self._reset()

    def _hit(self, fault: str) -> None:
        if fault in self._untold:
            self._untold.discard(fault)
            self._told(fault)

    # --- carrying

    async def open(self) -> None:
        """Listen on a port of its own."""
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._listener.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        """End everything."""
        self._listener.close()
        for connection in list(self._connections):
            connection.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._loop.create_task(self._carry(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(writer, None)
        self._connections.add(connection)
        try:
            if self._hole:
                await self._swallow(connection, reader)
                return
            answers, server = await asyncio.open_connection(self._server[0], int(self._server[2]))
            connection.ends.append(server)
            ways = [
                self._loop.create_task(self._pump(connection, *way)) for way in ((reader, server), (answers, writer))
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                if connection.swallowed:  # neither end hears that the other has closed
                    await asyncio.wait(ways)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        except OSError:  # there is no server now
            pass
        finally:
            self._connections.discard(connection)
            for end in connection.ends:
                end.close()  # what was passed on arrives

    async def _swallow(self, connection: _Connection, reader: asyncio.StreamReader) -> None:
        connection.swallowed = True
        self._hit("black hole")
        while await reader.read(PIECE):
            pass

    async def _pump(self, connection: _Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(PIECE):
            if self._hole or connection.swallowed:
                await self._swallow(connection, reader)
                return
            if self._delay_s:
                self._hit("delay")
            if self._rate < RATE:
                self._hit("bandwidth")
            await asyncio.sleep(self._delay_s + len(data) / self._rate)
            if self._left is not None:
                data, self._left = data[: self._left], self._left - len(data[: self._left])
            writer.write(data)
            await writer.drain()
            if self._left == 0:
                self._left = None
                self._hit("truncate")
                return


@contextmanager
def relaying(server: str, clients: int, told: Told) -> Iterator[list[Relay]]:
    """A relay for each client. `told` hears the name of every fault that has hit, in the relays' thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="relays")
    thread.start()
    relays = [Relay(loop, server, told) for _ in range(clients)]
    try:
        for relay in relays:
            asyncio.run_coroutine_threadsafe(relay.open(), loop).result(10)
        yield relays
    finally:
        for relay in relays:
            asyncio.run_coroutine_threadsafe(relay.close(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
