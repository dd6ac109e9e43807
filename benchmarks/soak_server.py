"""`sl-server` with a probe in its process: what it holds, sampled while it runs.

python -m benchmarks.soak_server SAMPLES.jsonl EVERY_S run RUN.toml …; the arguments from `run` on are sl-server's own. The probe is a
thread that finds the engine and the event loop among the process's objects; it changes nothing in them.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import threading
import time
from pathlib import Path
from typing import TypeVar

from sl_server.cli import application as cli
from sl_server.training.engine import Engine

T = TypeVar("T")


def _found(kind: type[T]) -> T | None:
    return next((thing for thing in gc.get_objects() if issubclass(type(thing), kind)), None)


def _sample(engine: Engine, loop: asyncio.AbstractEventLoop) -> dict[str, float]:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    return {
        "seconds": time.monotonic(),
        "round": float(engine.coordinator.completed_waves),
        "rss_kb": float(status["VmRSS"].split()[0]),
        "fds": float(len(list(Path("/proc/self/fd").iterdir()))),
        "tasks": float(len(asyncio.all_tasks(loop))),
        "threads": float(status["Threads"]),
        "sessions": float(len(engine.sessions.by_client)),
        "links": float(len(engine.links)),
        "streams": float(len(engine.links.streams)),
        "members": float(len(engine.coordinator.roster.known())),
        "objects": float(len(gc.get_objects())),
    }


def _probe(path: Path, every_s: float) -> None:
    engine, loop = None, None
    while engine is None or loop is None:
        time.sleep(0.2)
        engine, loop = _found(Engine), _found(asyncio.AbstractEventLoop)
    with path.open("w") as file:
        while True:
            try:
                file.write(json.dumps(_sample(engine, loop)) + "\n")
                file.flush()
            except RuntimeError:  # a set of the other threads' changed while it was counted: the next sample will do
                pass
            time.sleep(every_s)


def main() -> None:
    """Run the command beside its probe."""
    path, every_s, *command = sys.argv[1:]
    threading.Thread(target=_probe, args=(Path(path), float(every_s)), daemon=True).start()
    sys.argv = ["sl-server", *command]
    cli.main()


if __name__ == "__main__":
    main()
