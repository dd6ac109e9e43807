"""Raw bytes of tensors over a stream, and the time that passes meanwhile: what both sides of the bare stream share."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator

from torch import Tensor


class Laps(defaultdict[str, float]):
    """Seconds by phase; each lap runs from the one before."""

    def __init__(self) -> None:
        super().__init__(float)
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        """The time since the last lap belongs to `phase`."""
        now = time.perf_counter()
        self[phase] += now - self._last
        self._last = now


def view(x: Tensor) -> memoryview:
    """The bytes of a CPU tensor, not copied."""
    return x.detach().contiguous().numpy().data.cast("B")


def pieces(x: memoryview, y: memoryview, size: int) -> Iterator[bytes]:
    """`x` as messages of at most `size` bytes, `y` at the end of the last; every byte is copied once."""
    *starts, last = range(0, len(x), size)
    for start in starts:
        yield bytes(x[start : start + size])
    yield b"".join((x[last:], y))


async def gather(read: Callable[[], Awaitable[object]], memory: memoryview) -> bytes | memoryview | None:
    """What fits `memory`: one message as it came, or pieces copied into it; None at the stream's end."""
    filled = 0
    while isinstance(piece := await read(), bytes):
        if len(piece) == len(memory):
            return piece
        memory[filled : filled + len(piece)] = piece
        filled += len(piece)
        if filled == len(memory):
            return memory
    return None
