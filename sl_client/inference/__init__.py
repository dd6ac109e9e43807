"""`sl-client predict`: a person's files pass through the lower segment here and the head on a server.

One thread and no event loop. Lower segments on disk are found by their digests.
"""

from sl_common.lazy_exports import lazy_exports

__getattr__, __all__ = lazy_exports(
    __name__,
    command="PredictCommand",
    lower_cache="default_folder",
    predictor="Predictor",
)
