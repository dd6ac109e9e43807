"""The device and its owner's limits: threads, memory, models that may run, pages given back to the system.

It reads the machine and knows no network and no run but its configuration.
"""

from sl_common.lazy_exports import lazy_exports

__getattr__, __all__ = lazy_exports(
    __name__,
    limits="Limits NO_LIMITS device_for parse_size",
    pages="give_back_code use_one_arena",
)
