"""Messages of inference with the network of a finished run. Neither side keeps state of the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from sl_common.holdings import Build, Inputs
from sl_common.tensors import StateDict


@dataclass(frozen=True, kw_only=True, slots=True)
class Offer:
    """The run whose network answers on this stream, and how it was built."""

    config: str  # JSON
    lower_sha256: bytes = b""  # of the shared lower segment; empty: every client has its own
    inputs: Inputs | None = None  # numbers that the clients trained on, if known
    build: Build | None = None  # the lower segment as the server built it
    torch: str = ""  # the server's version


@dataclass(frozen=True, kw_only=True, slots=True)
class Fetch:
    """Request for the lower segment."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Lower:
    """Weights of the lower segment."""

    weights: Mapping[str, StateDict]  # {"lower": …}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Query:
    """Activations of some samples at the cut."""

    step: int  # number of the query on this stream, from 0
    z: Tensor  # (B, *cut)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scores:
    """The head's output for a query."""

    step: int
    scores: Tensor  # (B, classes), before the softmax


InferenceRequest = Fetch | Query  # sent by a client
InferenceReply = Offer | Lower | Scores  # sent by the server
