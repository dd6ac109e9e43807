"""A client's training process: it takes its seat in a run, carries the messages of its program, and keeps snapshots on disk.

The program itself (`sl_common.client`) is pure; this folder waits, reads the clock and writes files.
"""

from sl_common.lazy_exports import lazy_exports

__getattr__, __all__ = lazy_exports(
    __name__,
    runner="Interrupted Runner run_until_interrupted",
    seat="take_seat",
)
