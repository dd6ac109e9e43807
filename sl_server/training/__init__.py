"""The shell that trains: one thread owns the coordinator, others compute for it, and a process holds them together.

The engine alternates events with work and never waits for a peer.
"""

from sl_common.lazy_exports import lazy_exports

__getattr__, __all__ = lazy_exports(
    __name__,
    process="run_server",
    recorder="RunRecorder",
    workers="run_timed",
)
