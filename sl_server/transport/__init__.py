"""Frames between gRPC and the inbox of the loop that answers them, and the limits on what one peer may cost.

It moves frames and refuses streams; it knows nothing of training.
"""

from sl_common.lazy_exports import lazy_exports

__getattr__, __all__ = lazy_exports(
    __name__,
    deadlines="Deadlines look_every_s",
    inbox="Inbox",
    refusals="Refusals as_refused",
    server="",
    streams="MAX_UNWRITTEN Stream",
)
