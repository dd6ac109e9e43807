"""Queries that wait for an answer, and one pass of a head over several of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn

from sl_common.messages.inference import Query
from sl_server.inference.clients import InferenceClient


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class WaitingQuery:
    """A query without an answer; times are of `time.perf_counter`."""

    client: InferenceClient
    query: Query
    arrived: float  # when its last frame was put into the inbox
    decode_s: float

    @property
    def head(self) -> int | None:
        """Number of the head that answers it."""
        return self.client.head

    @property
    def samples(self) -> int:
        """Number of samples in it."""
        return len(self.query.z)


def compute(heads: Mapping[int | None, nn.Module], chosen: Sequence[WaitingQuery]) -> Sequence[Tensor]:
    """Return the scores of each query, (B, classes), on the CPU. All queries are for the same head."""
    head = heads[chosen[0].head]
    device = next((p.device for p in head.parameters()), torch.device("cpu"))
    z = chosen[0].query.z if len(chosen) == 1 else torch.cat([one.query.z for one in chosen])
    with torch.inference_mode():
        scores: Tensor = head(z.to(device)).cpu()
    ends = list(accumulate(one.samples for one in chosen))
    return [scores[end - one.samples : end] for one, end in zip(chosen, ends, strict=True)]
