"""One open stream's outbox: the engine's thread puts frames in, the event loop writes them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import SupportsBytes

import grpc

from sl_common.errors import Refused
from sl_common.wire.outgoing import Outgoing

LAST_WORDS_S = 5.0  # for what was sent before the stream was closed; a peer that does not read gets no more


class ServerStream:
    """Made in the task that writes it."""

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self.posted = 0
        self.taken = 0
        self.held = False  # it has sent too much, or too fast, and is not read for now
        self.refused: Refused | None = None  # before the engine had it
        self._loop = asyncio.get_running_loop()
        self._writer = asyncio.current_task()
        self._frames: deque[SupportsBytes] = deque()
        self.outgoing = Outgoing()  # of them
        self.written = 0  # frames that went out; the event loop counts them, the engine's thread those that were sent
        self._sent = 0
        self._wake = asyncio.Event()
        self.answered = asyncio.Event()  # the engine has said something: its yes or no to the Hello
        self._closing = False

    def send(self, frames: Sequence[SupportsBytes]) -> None:
        """From any thread; the bytes of each are made when its turn comes."""
        self._sent += len(frames)
        for frame in frames:
            self.outgoing.queue(frame)
        self._frames.extend(frames)
        self._call(self._wake.set)

    @property
    def waiting(self) -> int:
        """Frames that were sent and have not gone out."""
        return self._sent - self.written

    @property
    def writing(self) -> bool:
        """Something that was sent has not gone out."""
        return self.written != self._sent

    def close(self) -> None:
        """From any thread."""
        if not self._closing:
            self._closing = True
            self._call(self._end)

    def _end(self) -> None:
        self._wake.set()
        if self._writer is not None:
            self._loop.call_later(LAST_WORDS_S, self._writer.cancel)  # of no effect on a task that is done

    def _call(self, what: object) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(what)  # type: ignore[arg-type]

    async def write_to(self, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        """Write until the stream is closed and its outbox empty."""
        while True:
            while self._frames:
                frame = self._frames.popleft()
                self.outgoing.hand(frame)
                await context.write(bytes(frame))
                self.written += 1
                self.answered.set()
            if self._closing:
                return
            self._wake.clear()
            if not self._frames and not self._closing:
                await self._wake.wait()
