"""A whole run in one process: the same core and client program, the same endpoints for every message, and no network.

The only folder that may import `sl_client`; imports neither gRPC nor Prometheus.
"""

from sl_common.lazy_exports import lazy_exports

__getattr__, __all__ = lazy_exports(
    __name__,
    choice="StackedOption simulation_of",
    replay="Departed Replayed replay_log",
    simulation="Simulation first_seat",
)
