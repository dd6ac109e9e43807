"""Examine a configuration before it runs: `sl-server check`, `codecs` and `presets`.

The network is built and measured, but no training result is kept.
"""

from sl_common.lazy_exports import lazy_exports

__getattr__, __all__ = lazy_exports(
    __name__,
    check="CheckReport inspect",
    check_text="show_report",
    codecs="compare",
    presets="",
)
