"""A segment of a network with its optimiser, and the verbs by which it is trained.

Pure; randomness is an argument, and every participant's segments live in a Bank of its own.
"""

from sl_common.lazy_exports import lazy_exports

__getattr__, __all__ = lazy_exports(
    __name__,
    backward="backward_from backward_to has_large_products",
    bank="Bank",
    modules="buffers_untouched draws_random_numbers seeded",
    optim="Adam Constant Optimizer Schedule TrainingConfig",
    segment="Alone Segment SpanFactory Tree no_span",
    singles="reason_against_one",
)
