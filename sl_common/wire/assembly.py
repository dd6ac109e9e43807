"""A message body on its way in: memory for each tensor, 64-byte aligned, filled by counting bytes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from sys import getrefcount

from sl_common.codec import Layout, Packed, Scheme
from sl_common.errors import WireError
from sl_common.tensors import aligned_buffer

_OURS = 3  # references to what nobody else has: the list's, the loop's, that of the call which counts


class Plan:
    """Where the tensors of a body will lie, and the codecs that they are in: the same for one batch after another."""

    def __init__(self, layouts: Sequence[Layout], schemes: Sequence[Scheme]) -> None:
        self.schemes = schemes
        self.nbytes = sum(layout.nbytes for layout in layouts)  # on the wire
        ends = list(accumulate(_aligned(layout.nbytes) for layout in layouts))
        self.memory = ends[-1] if ends else 0
        self.places = [
            (layout, start, start + layout.nbytes) for layout, start in zip(layouts, [0, *ends], strict=False)
        ]


class Assembly:
    """Gathers the chunks of one body. The memory it takes was checked against the limit before."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        memory = aligned_buffer(plan.memory)
        self.packed = [Packed(layout=layout, data=memory[start:end]) for layout, start, end in plan.places]
        self._begin()

    def _begin(self) -> None:
        self.missing = self.plan.nbytes
        self._tensor = 0  # being filled
        self._offset = 0  # bytes of it that are there

    def again(self, plan: Plan) -> bool:
        """Gather another body of this plan in the same memory, if nobody has any of the last one: new memory costs more than filling it.

        A tensor that is a view of a body holds on to the view of the memory that it was made from, so references tell.
        """
        free = plan is self.plan and all(
            getrefcount(one) <= _OURS and getrefcount(one.data) < _OURS for one in self.packed
        )
        if free:
            self._begin()
        return free

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
