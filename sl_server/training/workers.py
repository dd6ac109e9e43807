"""Threads for long work beside the engine: it hands jobs in and gets their results as events, and never waits for them."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable

import torch

from sl_common.messages.facts import AuxAligned
from sl_common.messages.training import Aligned
from sl_server.core.alignments import Job


def run_timed(job: Job) -> tuple[Aligned, AuxAligned]:
    """Run a job here and now: its result, and what to tell people. Raises Diverged."""
    began = time.perf_counter()
    result = job.run()
    took = time.perf_counter() - began
    told = AuxAligned(
        client=job.client,
        round=result.round,
        samples=job.samples,
        before=result.before,
        after=result.after,
        took_s=round(took, 4),
    )
    return result, told


class Workers:
    """Started with the first job; as many as there are cores to spare. They end with the process, whatever they are at."""

    def __init__(self, threads_each: int) -> None:
        """`threads_each`: intra-op threads of torch, as everywhere in the run, so that bits are the same."""
        self._threads_each = threads_each
        self._todo: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._started = False

    def do(self, work: Callable[[], None]) -> None:
        """Do it when there is time. It handles its own errors."""
        self._todo.put(work)
        if not self._started:
            self._started = True
            for number in range(max(1, len(os.sched_getaffinity(0)) // self._threads_each - 1)):
                threading.Thread(target=self._run, name=f"worker-{number}", daemon=True).start()

    def _run(self) -> None:
        torch.set_num_threads(self._threads_each)
        while True:
            self._todo.get()()
