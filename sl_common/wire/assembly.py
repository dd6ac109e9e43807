"""Memory for a message body that is being received: a 64-byte aligned view for each tensor, filled in order."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from sys import getrefcount

from sl_common.codec import Layout, Packed, Scheme
from sl_common.errors import WireError
from sl_common.tensors import aligned_buffer

_OWN_REFERENCES = (
    3  # to an object that nobody else holds: from the list, the loop variable and the argument of getrefcount
)


class Plan:
    """Places of the tensors of a body in memory, and their codecs. Batches of the same shape share one plan."""

    def __init__(self, layouts: Sequence[Layout], schemes: Sequence[Scheme]) -> None:
        self.schemes = schemes
        self.nbytes = sum(layout.nbytes for layout in layouts)  # on the wire
        ends = list(accumulate(_aligned(layout.nbytes) for layout in layouts))
        self.memory = ends[-1] if ends else 0
        self.places = [
            (layout, start, start + layout.nbytes) for layout, start in zip(layouts, [0, *ends], strict=False)
        ]


class Assembly:
    """Collects the chunks of one body. The caller has checked its size against the limit."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        memory = aligned_buffer(plan.memory)
        self.packed = [Packed(layout=layout, data=memory[start:end]) for layout, start, end in plan.places]
        self._reset()

    def _reset(self) -> None:
        self.missing = self.plan.nbytes
        self._tensor = 0  # index of the tensor being filled
        self._offset = 0  # bytes of it that have been received

    def reuse(self, plan: Plan) -> bool:
        """Start another body of this plan in the same memory if nothing refers to the last one; return whether it did.

        Allocating memory costs more than filling it. A decoded tensor that is a view of the body keeps a reference to
        the memoryview that it was made from, so reference counts tell whether the memory is in use.
        """
        free = plan is self.plan and all(
            getrefcount(one) <= _OWN_REFERENCES and getrefcount(one.data) < _OWN_REFERENCES for one in self.packed
        )
        if free:
            self._reset()
        return free

    def add(self, chunk: memoryview) -> None:
        """Copy the next bytes to their tensors. Raises WireError if the body is longer than its header says."""
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
    """Round up to a multiple of 64."""
    return -nbytes % 64 + nbytes
