"""Keeps the cores awake while something is timed (Linux; elsewhere it does nothing).

A core with nothing to do is halted, and on a virtual machine it is the host that wakes it, later if the host is busy. That is neither ours
nor the bare stream's, and differs from minute to minute.
A process of the lowest class, SCHED_IDLE, on each core leaves it to whatever else wants it, at once.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

_NOTE = (
    "Meanwhile a process of class SCHED_IDLE keeps each core awake, for all sides alike: on a virtual machine the host takes its own time "
    "to wake one that sleeps (`--asleep`: without it)."
)
_SPIN = """
import os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
parent = os.getppid()
while True:
    for _ in range(10**6):
        pass
    if os.getppid() != parent:
        break
"""


def add_option(parser: argparse.ArgumentParser) -> None:
    """`--asleep`, for `awake(not args.asleep)` and `note(not args.asleep)`."""
    parser.add_argument("--asleep", action="store_true", help="let idle cores sleep")


def note(wanted: bool) -> str:
    """What a page says of it; nothing if nothing was done."""
    return _NOTE if wanted else ""


@contextlib.contextmanager
def awake(wanted: bool = True) -> Iterator[None]:
    """No core of ours sleeps inside."""
    cores = os.sched_getaffinity(0) if wanted and sys.platform == "linux" else ()
    spinning = [subprocess.Popen([sys.executable, "-S", "-c", _SPIN, str(core)]) for core in cores]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()
