"""What is said after a run, when its network answers. Nothing trains, and neither side keeps anything of the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from sl_common.holdings import Build, Inputs
from sl_common.tensors import StateDict


@dataclass(frozen=True, kw_only=True, slots=True)
class Offer:
    """The run whose network answers on this stream."""

    config: str  # JSON
    lower_sha256: bytes = b""  # of the lower segment that all share; empty: they are their clients' own
    inputs: Inputs | None = None  # what the run's clients trained on, if it is known
    build: Build | None = None  # the lower segment as the server built it
    torch: str = ""  # the server's version


@dataclass(frozen=True, kw_only=True, slots=True)
class Fetch:
    """Asks for the lower segment."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Lower:
    """The lower segment."""

    weights: Mapping[str, StateDict]  # {"lower": …}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Query:
    """Some samples at the cut."""

    step: int  # on this stream, from 0
    z: Tensor  # (B, *cut)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scores:
    """What the head makes of a query."""

    step: int
    scores: Tensor  # (B, classes), before the softmax


InferenceRequest = Fetch | Query  # by a client
InferenceReply = Offer | Lower | Scores  # by the server
