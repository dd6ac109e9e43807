"""The outbox of one open stream: the loop's thread puts frames in, the event loop writes them to gRPC."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import SupportsBytes

import grpc

from sl_common.errors import Refused
from sl_common.wire.outgoing import Outgoing

LAST_WORDS_S = 5.0  # for frames that were sent before the stream was closed; a peer that does not read gets no more


class ServerStream:
    """One stream as the server has it. Made in the task that writes it."""

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self.posted = 0
        self.taken = 0
        self.held = False
        self.refused: Refused | None = None  # set if it was refused before the loop had it
        self._loop = asyncio.get_running_loop()
        self._writer = asyncio.current_task()
        self._frames: deque[SupportsBytes] = deque()
        self.outgoing = Outgoing()
        self.written = 0  # counted in the event loop
        self._sent = 0  # counted in the loop's thread
        self._wake = asyncio.Event()
        self.answered = asyncio.Event()  # set when the answer to the Hello is written
        self._closing = False

    def send(self, frames: Sequence[SupportsBytes]) -> None:
        """Write these frames, in order. From any thread; the bytes of a frame are made when its turn comes."""
        self._sent += len(frames)
        for frame in frames:
            self.outgoing.queue(frame)
        self._frames.extend(frames)
        self._call(self._wake.set)

    @property
    def waiting(self) -> int:
        """Number of frames that were sent and not yet written."""
        return self._sent - self.written

    @property
    def writing(self) -> bool:
        """True while a frame that was sent is not yet written."""
        return self.written != self._sent

    def close(self) -> None:
        """End the stream after the frames that were sent. From any thread."""
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
        """Write frames until the stream is closed and its outbox empty."""
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
