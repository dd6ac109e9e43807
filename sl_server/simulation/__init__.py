"""A whole run in one process: the same core and the same client program, every message through the same endpoints, and no network.

The one folder that may import `sl_client`; it imports neither gRPC nor Prometheus.
"""

from sl_common.lazy_exports import lazy_exports

__getattr__, __all__ = lazy_exports(
    __name__,
    choice="StackedOption simulation_of",
    replay="Departed Replayed replay_log",
    simulation="Simulation first_seat",
)
