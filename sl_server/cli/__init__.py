"""The command `sl-server`: options in, one function called, words and an exit code out.

Nothing below knows a command line, and nobody imports this folder but the entry point.
"""

from sl_common.lazy_exports import lazy_exports

__getattr__, __all__ = lazy_exports(
    __name__,
    application="main",
)
