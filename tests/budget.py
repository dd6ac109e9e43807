"""What one hostile input may cost whoever reads it: 50 ms of CPU time and 64 MiB of memory.

CPU time is the process's, of all its threads, around the reading alone; the making of the input is not in it. Memory is how far the
process's resident peak rises above what was resident before: the kernel's mark of the peak is set back before each input (`5` into
/proc/self/clear_refs), so an earlier large one hides nothing. What malloc kept of earlier inputs is not counted again, so `tests/fuzz.py`
runs its targets with a malloc that keeps next to nothing. Where the mark cannot be set back, only a rise above all that was is seen.

A collection of garbage, or the first use of something, is not the input's fault: one that is over a budget, or would be the costliest of its
target, is read twice more, and the least of the three counts.
"""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass

CPU_S = 0.05
MEMORY = 64 << 20  # bytes
MALLOC = {"MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_ARENA_MAX": "1"}


class OverBudget(AssertionError):
    """An input cost too much, three times."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one input."""

    cpu_s: float
    nbytes: int

    @property
    def over(self) -> bool:
        """More than either budget."""
        return self.cpu_s > CPU_S or self.nbytes > MEMORY

    def __str__(self) -> str:
        return f"{1e3 * self.cpu_s:.1f} ms, {self.nbytes / 2**20:.1f} MiB"


@dataclass(frozen=True, slots=True)
class Costliest:
    """An input that cost most of something, and what is needed to have it again."""

    cost: Cost
    number: int
    nbytes: int  # of the input
    head: str  # its first bytes


class Meter:
    """The costs of one target's inputs."""

    def __init__(self) -> None:
        self._mark = -1
        with contextlib.suppress(OSError):
            self._mark = os.open("/proc/self/clear_refs", os.O_WRONLY | os.O_CLOEXEC)
        self.slowest: Costliest | None = None
        self.largest: Costliest | None = None

    def close(self) -> None:
        """Nothing more is measured."""
        if self._mark >= 0:
            os.close(self._mark)
            self._mark = -1

    def run(self, number: int, data: bytes, read: Callable[[], str]) -> str:
        """How an input ended. Raises OverBudget, or whatever the reading raises that it must not."""
        ended, cost = self._once(read)
        if cost.over or self._beats(cost):
            for _ in range(2):
                _, again = self._once(read)
                cost = Cost(min(cost.cpu_s, again.cpu_s), min(cost.nbytes, again.nbytes))
            self._note(Costliest(cost, number, len(data), data[:16].hex()))
        if cost.over:
            most = Cost(CPU_S, MEMORY)
            raise OverBudget(f"{len(data):,} bytes, {data[:32].hex()}…: {cost}, three times; allowed are {most}")
        return ended

    def _once(self, read: Callable[[], str]) -> tuple[str, Cost]:
        if self._mark >= 0:
            os.pwrite(self._mark, b"5", 0)
        before = _peak()
        began = time.process_time()
        ended = read()
        took = time.process_time() - began
        return ended, Cost(took, _peak() - before)

    def _beats(self, cost: Cost) -> bool:
        return (
            self.slowest is None
            or self.largest is None
            or cost.cpu_s > self.slowest.cost.cpu_s
            or cost.nbytes > self.largest.cost.nbytes
        )

    def _note(self, one: Costliest) -> None:
        if self.slowest is None or one.cost.cpu_s > self.slowest.cost.cpu_s:
            self.slowest = one
        if self.largest is None or one.cost.nbytes > self.largest.cost.nbytes:
            self.largest = one


def _peak() -> int:
    """Bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
