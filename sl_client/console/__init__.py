"""Output of a training client for the person at the device: progress bars, lines, JSON events.

The other folders call it when something happens; it decides nothing.
"""

from sl_common.lazy_exports import lazy_exports

__getattr__, __all__ = lazy_exports(
    __name__,
    progress="CountedBatches",
    show="ClientConsole ClientLines make_client_console",
)
