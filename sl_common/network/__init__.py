"""The network of a run, split at the cut: how it is built, tried out, measured, described and compared.

Pure: both sides build it from the same configuration and must get the same network.
"""

from sl_common.lazy_exports import lazy_exports

__getattr__, __all__ = lazy_exports(
    __name__,
    builds="build_difference builds_of is_release",
    footprint="FACTOR Footprint at_rest footprint_of kept_by nbytes_of trial_of weights_below",
    network="Network message_limit trained",
    parts="auxiliary_fit",
    ties="Tie copies ties_of",
)
