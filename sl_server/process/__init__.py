"""The process around a server's loop, the same for `run` and `serve`: signals, watchers, gRPC and the metrics address.

It knows neither training nor inference.
"""

from sl_common.lazy_exports import lazy_exports

__getattr__, __all__ = lazy_exports(
    __name__,
    descriptors="claim_descriptors descriptors_for_inference descriptors_for_run",
    harness="Harness on_signals run_process",
)
