"""Threads for long work beside the engine, which hands jobs in, gets their results as events and waits for none."""

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
    """Run a job in this thread. Return its result, and a fact about it. Raises Diverged."""
    began = time.perf_counter()
    result = job.run()
    took_s = time.perf_counter() - began
    fact = AuxAligned(
        client=job.client,
        round=result.round,
        samples=job.samples,
        before=result.before,
        after=result.after,
        took_s=round(took_s, 4),
    )
    return result, fact


class Workers:
    """Threads on the spare cores, started with the first job. They end with the process, even within a job."""

    def __init__(self, threads_each: int) -> None:
        """`threads_each`: intra-op threads of torch, as everywhere in the run, so that the bits are the same."""
        self._threads_each = threads_each
        self._todo: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._started = False

    def do(self, work: Callable[[], None]) -> None:
        """Run `work`, which must handle its own errors, as soon as a thread is free."""
        self._todo.put(work)
        if not self._started:
            self._started = True
            for number in range(max(1, len(os.sched_getaffinity(0)) // self._threads_each - 1)):
                threading.Thread(target=self._run, name=f"worker-{number}", daemon=True).start()

    def _run(self) -> None:
        torch.set_num_threads(self._threads_each)
        while True:
            self._todo.get()()
