"""A message body on its way in: memory for each tensor, 64-byte aligned, filled by counting bytes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from sl_common.codec import Layout, Packed
from sl_common.errors import WireError
from sl_common.tensors import aligned_buffer


class Assembly:
    """Gathers the chunks of one body. The memory it takes was checked against the limit before."""

    def __init__(self, layouts: Sequence[Layout]) -> None:
        ends = list(accumulate(_aligned(layout.nbytes) for layout in layouts))
        memory = aligned_buffer(ends[-1] if ends else 0)
        starts = [0, *ends]
        self.packed = [
            Packed(layout=layout, data=memory[start : start + layout.nbytes])
            for layout, start in zip(layouts, starts, strict=False)
        ]
        self.missing = sum(layout.nbytes for layout in layouts)
        self._tensor = 0  # being filled
        self._offset = 0  # bytes of it that are there

    def add(self, chunk: memoryview) -> None:
        """Copy the next bytes to where they belong. Raises WireError if the body is longer than its header said."""
        if len(chunk) > self.missing:
            raise WireError(f"message body is longer than its header says: {len(chunk) - self.missing} bytes too many")
        source = chunk
        self.missing -= len(chunk)
        while source:
            data = self.packed[self._tensor].data
            taken = min(len(source), len(data) - self._offset)
            data[self._offset : self._offset + taken] = source[:taken]  # type: ignore[index]
            source = source[taken:]
            self._offset += taken
            if self._offset == len(data):
                self._tensor += 1
                self._offset = 0


def _aligned(nbytes: int) -> int:
    """Up to the next multiple of 64."""
    return -nbytes % 64 + nbytes
