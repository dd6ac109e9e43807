"""A server that answers after a run: the loop that computes queries, and the process around it.

One thread owns the network; nothing trains and nothing of a client is kept.
"""

from sl_common.lazy_exports import lazy_exports

__getattr__, __all__ = lazy_exports(
    __name__,
    microbatch="MicroBatching",
    process="serve_trained",
)
