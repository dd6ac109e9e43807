"""A client's life without a network: its program as a generator, the flow that feeds it, what it checks of a server's words, snapshots.

Pure: a driver carries the messages. The same program runs in the simulator and on a device.
"""

from sl_common.lazy_exports import lazy_exports

__getattr__, __all__ = lazy_exports(
    __name__,
    orders="check_welcome",
    program="Batches Flow Seat participate",
    snapshots="Snapshots",
)
