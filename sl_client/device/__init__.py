"""The device and its owner's limits: threads, memory, the place to compute, and memory returned to the system.

It reads the machine; of a run it knows the configuration alone.
"""

from sl_common.lazy_exports import lazy_exports

__getattr__, __all__ = lazy_exports(
    __name__,
    limits="DeviceLimits NO_LIMITS device_for parse_size",
    pages="drop_clean_pages use_one_arena",
)
