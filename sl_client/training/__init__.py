"""The training process of a client: it takes a seat in a run, carries messages, and keeps snapshots on disk.

The program itself (`sl_common.client`) is pure; this folder waits, reads the clock and writes files.
"""

from sl_common.lazy_exports import lazy_exports

__getattr__, __all__ = lazy_exports(
    __name__,
    runner="Runner",
    seat="take_seat",
)
