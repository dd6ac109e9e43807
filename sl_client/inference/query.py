"""A query on its way, and the checks that its answer must pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sl_common.errors import WireError
from sl_common.messages.inference import Scores
from sl_common.wire import Timing


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Prediction:
    """The network's answer to one batch."""

    scores: Tensor  # (B, classes), before the softmax
    seconds: float  # from the samples to the scores


@dataclass(kw_only=True, slots=True, eq=False)
class PendingQuery:
    """A batch without an answer, and its times of `time.perf_counter`."""

    z: Tensor  # (B, *cut)
    began: float
    forward_s: float
    encode_s: float = 0.0
    sent: float = 0.0

    def timing(self, step: int, received: float, decoded: float) -> Timing:
        """Return the seconds of each phase.

        The answer to query `step` came at `received` and was decoded at `decoded`.
        """
        return Timing(
            step=step,
            forward=self.forward_s,
            encode=self.encode_s,
            round_trip=received - self.sent,
            decode=decoded - received,
            backward=0.0,
        )


def check_scores(message: object, step: int, samples: int, classes: int) -> Tensor:
    """Return the scores (samples, classes) in the answer to query `step`. Raises WireError for any other answer."""
    if not isinstance(message, Scores) or message.step != step:
        raise WireError(f"the server answered query {step} with {type(message).__name__}")
    scores, wanted = message.scores, (samples, classes)
    if tuple(scores.shape) != wanted or not scores.is_floating_point():
        raise WireError(f"scores are {scores.dtype} {tuple(scores.shape)}, expected floating point numbers {wanted}")
    # A head gives -Inf to a class that it rules out, so only the largest score has to be finite.
    if not bool(torch.isfinite(scores.amax(dim=1)).all()):
        raise WireError(f"scores of query {step} hold NaN or Inf")
    return scores
