"""What a person at the device sees of a training client: progress bars, lines, JSON events.

It is told what happens and decides nothing.
"""

from sl_common.lazy_exports import lazy_exports

__getattr__, __all__ = lazy_exports(
    __name__,
    progress="Counted",
    show="ClientConsole make_client_console",
)
