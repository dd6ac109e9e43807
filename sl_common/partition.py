"""Partitions: a pure function of labels, shards and seed decides which client trains on which samples.

Every client computes it for itself.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from sl_common.errors import ConfigError
from sl_common.seeds import numpy_generator
from sl_common.value import Value

Labels = npt.NDArray[np.int64]  # (N,)
Indices = npt.NDArray[np.int64]  # sorted positions in Labels


class Iid(Value):
    """Equal random parts (sizes differ by one at most)."""

    kind: Literal["iid"] = Field("iid", description="Equal random parts.")

    def split(self, labels: Labels, shards: int, seed: int) -> list[Indices]:
        """Return the samples of each shard. Raise ConfigError if there are more shards than samples."""
        _check_enough(shards, shards, len(labels), "one sample for each shard")
        order = numpy_generator(seed, "partition", self.kind).permutation(len(labels))
        return [np.sort(part) for part in np.array_split(order, shards)]

    def most(self, samples: int, shards: int) -> int:
        """Return the largest part that this number of samples can give."""
        return -(-samples // shards)


class Dirichlet(Value):
    """Deal each class over the shards in proportions ~ Dir(alpha); the smaller alpha, the more skewed the labels.

    Source: Yurochkin et al., "Bayesian Nonparametric Federated Learning of Neural Networks", ICML 2019. Deviation:
    common code redraws until all shards have enough samples, which may never end; we move random ones from the largest.
    """

    kind: Literal["dirichlet"] = Field(
        "dirichlet",
        description="Skewed labels: each class is dealt in proportions drawn from a Dirichlet distribution.",
    )
    # NumPy's draw overflows near 1e308, and above 1e6 all values look alike.
    alpha: float = Field(gt=0, le=1e6, description="Concentration: the smaller it is, the more skewed the labels.")
    min_samples: int = Field(default=1, ge=1, description="Least number of samples in a shard.")

    def split(self, labels: Labels, shards: int, seed: int) -> list[Indices]:
        """Return the samples of each shard. Raise ConfigError if there are fewer than shards * min_samples samples."""
        _check_enough(
            shards, shards * self.min_samples, len(labels), f"min_samples = {self.min_samples} for each shard"
        )
        random = numpy_generator(seed, "partition", self.kind)
        parts: list[list[Indices]] = [[] for _ in range(shards)]
        for label in np.unique(labels):
            members = random.permutation(np.flatnonzero(labels == label))
            shares = random.dirichlet(np.full(shards, self.alpha))
            cuts = (np.cumsum(shares)[:-1] * len(members)).astype(np.int64)
            for part, piece in zip(parts, np.split(members, cuts), strict=True):
                part.append(piece)
        # Shuffled, because a large shard gives away its last samples: unshuffled, those would all be of the last class.
        lists = [random.permutation(np.concatenate(part)).tolist() for part in parts]
        _level_up(lists, self.min_samples)
        return [np.sort(np.array(part, dtype=np.int64)) for part in lists]

    def most(self, samples: int, shards: int) -> int:
        """Return the largest part that this number of samples can give: all other shards have their minimum."""
        return max(1, samples - (shards - 1) * self.min_samples)


class Shards(Value):
    """Sort by label and cut into equal pieces, of which every shard gets `per_client` at random: few labels for each.

    Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017.
    """

    kind: Literal["shards"] = Field(
        "shards", description="Few labels for each shard: sorted by label, cut into pieces, dealt at random."
    )
    per_client: int = Field(default=2, ge=1, description="Pieces that each shard gets.")

    def split(self, labels: Labels, shards: int, seed: int) -> list[Indices]:
        """Return the samples of each shard.

        Raise ConfigError if there are more pieces (shards * per_client) than samples.
        """
        count = shards * self.per_client
        _check_enough(
            shards, count, len(labels), f"one sample for each of per_client = {self.per_client} pieces a shard"
        )
        pieces = np.array_split(np.argsort(labels, kind="stable"), count)
        deal = numpy_generator(seed, "partition", self.kind).permutation(count).reshape(shards, self.per_client)
        return [np.sort(np.concatenate([pieces[piece] for piece in hand])) for hand in deal]

    def most(self, samples: int, shards: int) -> int:
        """Return the largest part that this number of samples can give."""
        return min(samples, self.per_client * -(-samples // (shards * self.per_client)))


class OwnData(Value):
    """Every client has data of its own, and trains on all of it."""

    kind: Literal["own"] = Field("own", description="Every client has data of its own and trains on all of it.")

    def split(self, labels: Labels, shards: int, seed: int) -> list[Indices]:  # noqa: ARG002
        """Return all samples for each shard. Raise ConfigError if there is no sample."""
        _check_enough(shards, 1, len(labels), "one sample")
        return [np.arange(len(labels), dtype=np.int64)] * shards

    def most(self, samples: int, shards: int) -> int:  # noqa: ARG002
        """Return all samples."""
        return samples


Partition = Annotated[Iid | Dirichlet | Shards | OwnData, Field(discriminator="kind")]


def _check_enough(shards: int, needed: int, samples: int, what: str) -> None:
    if shards < 1:
        raise ConfigError(f"partition: {shards} shards asked for, at least 1 is needed")
    if needed > samples:
        raise ConfigError(f"partition: {shards} shards need {needed} samples ({what}), the training set has {samples}")


def _level_up(parts: list[list[int]], least: int) -> None:
    """Move samples from the largest part (the first of equals) until all have `least`; the total must allow it."""
    for part in parts:
        while len(part) < least:
            part.append(max(parts, key=len).pop())
