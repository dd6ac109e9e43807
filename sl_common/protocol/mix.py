"""Mixes add a term to the head's loss: `extra_loss(head, parts, at)` returns a scalar, or None."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt
from torch import Tensor

from sl_common.messages.training import Smashed
from sl_common.protocol.at import At
from sl_common.seeds import numpy_generator
from sl_common.training.segment import Segment
from sl_common.value import Value


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Arrived:
    """A batch in the cohort."""

    client: int  # shard
    batch: Smashed
    samples: int  # |Dᵢ|


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Part:
    """One client's share of a cohort on the head's device."""

    client: int
    z: Tensor  # (B, *cut), a slice of the leaf that the plain loss reaches
    y: Tensor  # (B,)
    weight: float  # weight of its mean loss in the cohort's loss; all weights sum to 1


class Unmixed(Value):
    """No term besides the plain loss."""

    kind: Literal["none"] = Field("none", description="No mixing.")

    def extra_loss(self, head: Segment, parts: Iterable[Part], at: At) -> Tensor | None:  # noqa: ARG002
        """Return None."""
        return None


class Mixup(Value):
    """Mix different clients' activations and labels in one sample: λ·sᵢ + (1 − λ)·sⱼ.

    Source: LocFedMix-SL, Oh et al. 2022, Eq. 5-7. Each client gets `partners` others, drawn without replacement and
    never itself; one client alone is not mixed. λ ~ Beta(alpha, alpha), one for each pair (`per = "pair"`) or each
    sample. The loss is λ·CE(·, yᵢ) + (1 − λ)·CE(·, yⱼ), exact for soft labels; client i's mixtures together weigh as
    much as its plain loss. All go through the head in one pass of their own, which leaves BatchNorm's statistics alone.
    Pairs of unequal batches end with the shorter one. Clients get no gradient of it unless `detached` is false.
    """

    kind: Literal["mixup"] = Field("mixup", description="Mixup of the activations and labels of different clients.")
    alpha: float = Field(1.0, gt=0, description="Parameter of the Beta(alpha, alpha) distribution of the mixing ratio.")
    partners: NonNegativeInt = Field(1, description="Other clients that each client is mixed with.")
    per: Literal["pair", "sample"] = Field(
        "pair", description="One mixing ratio for each pair of clients, or for each sample."
    )
    detached: bool = Field(True, description="Send the clients no gradient of the mixed loss.")

    def extra_loss(self, head: Segment, parts: Iterable[Part], at: At) -> Tensor | None:
        """Return Σᵢ weightᵢ · mean over i's mixtures, from one forward pass; None if no client has a partner."""
        parts = list(parts)
        z, first, second, lam, weight = [], [], [], [], []
        for own in parts:
            drawn = self.draw(own, [part for part in parts if part.client != own.client], at)
            for other, mixing in drawn:
                count = min(len(own.y), len(other.y))
                share = torch.from_numpy(mixing[:count]).to(own.z)
                beside = share.view(-1, *[1] * (own.z.dim() - 1))
                z.append(beside * self._seen(own.z)[:count] + (1 - beside) * self._seen(other.z)[:count])
                first.append(own.y[:count])
                second.append(other.y[:count])
                lam.append(share)
                weight.append(torch.full_like(share, own.weight / (len(drawn) * count)))
        if not z:
            return None
        members = [n for part in parts for n in (part.client, len(part.y))]
        logits = head.forward(torch.cat(z), (at.seed, "mixed", at.round, at.wave, at.step, *members), keep_buffers=True)
        losses = [F.cross_entropy(logits, torch.cat(labels), reduction="none") for labels in (first, second)]
        share = torch.cat(lam)
        return (torch.cat(weight) * (share * losses[0] + (1 - share) * losses[1])).sum()

    def draw(self, own: Part, others: Sequence[Part], at: At) -> list[tuple[Part, NDArray[Any]]]:
        """Return (partner, λ of each of own's samples (B,)); does not depend on the order of arrival."""
        generator = numpy_generator(at.seed, "mixup", at.round, at.wave, at.step, own.client)
        count = len(own.y)
        chosen = generator.choice(len(others), min(self.partners, len(others)), replace=False) if others else ()
        return [(others[int(place)], self._lam(generator, count)) for place in chosen]

    def _lam(self, generator: np.random.Generator, count: int) -> NDArray[Any]:
        if self.per == "sample":
            return generator.beta(self.alpha, self.alpha, count)
        return np.full(count, generator.beta(self.alpha, self.alpha))

    def _seen(self, z: Tensor) -> Tensor:
        return z.detach() if self.detached else z


Mix = Annotated[Unmixed | Mixup, Field(discriminator="kind")]
