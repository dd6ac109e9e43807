"""The command `sl-client`: it reads options, calls one function, and ends with a text and an exit code.

No other folder knows a command line, and only the entry point imports this one.
"""

from sl_common.lazy_exports import lazy_exports

__getattr__, __all__ = lazy_exports(
    __name__,
    application="main",
)
