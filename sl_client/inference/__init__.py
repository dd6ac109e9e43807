"""`sl-client predict`: a person's files through the lower segment here and the head on a server.

One thread and no event loop; what is kept on disk is found again by its digest.
"""

from sl_common.lazy_exports import lazy_exports

__getattr__, __all__ = lazy_exports(
    __name__,
    command="PredictCommand",
    lower_cache="default_folder",
    predictor="Predictor",
)
