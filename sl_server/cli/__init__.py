"""The command `sl-server`: read options, call one function, print text and set an exit code.

No other folder knows about command lines, and only the entry point imports this one.
"""

from sl_common.lazy_exports import lazy_exports

__getattr__, __all__ = lazy_exports(
    __name__,
    application="main",
)
