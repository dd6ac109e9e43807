"""The server's output for people: progress bars, lines, JSON events.

This folder receives facts and decides nothing.
"""

from sl_common.lazy_exports import lazy_exports

__getattr__, __all__ = lazy_exports(
    __name__,
    show="ServerConsole make_server_console",
)
