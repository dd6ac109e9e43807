"""A client without a network: its program as a generator, the flow that runs it, checks of server messages, snapshots.

Law: pure; a driver carries the messages. The same program runs in the simulator and on a device.
"""

from sl_common.lazy_exports import lazy_exports

__getattr__, __all__ = lazy_exports(
    __name__,
    flow="Flow",
    orders="check_welcome",
    program="participate",
    seat="Batches Seat",
    snapshots="Snapshots",
)
