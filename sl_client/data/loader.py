"""The batches of a client as a pure function of their number, so that a wave or a restart continues without state."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sl_client.data import Data, Samples
from sl_common.batch import Batch
from sl_common.dealing import Deal, LastBatch
from sl_common.errors import ConfigError
from sl_common.partition import Indices, Labels, OwnData, Partition
from sl_common.seeds import numpy_generator


@dataclass(frozen=True, eq=False)
class Loader:
    """The batches of one shard.

    Raises ConfigError if there is no sample, or no whole batch where the last is dropped.
    """

    data: Data
    indices: Indices  # this client's samples of the whole training set
    batch_size: int
    seed: int
    shard: int
    last: LastBatch = "keep"
    augment: Literal["none", "crop_flip"] = "none"

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size = {self.batch_size}, but at least 1 is needed")
        if len(self.indices) == 0:
            raise ConfigError(f"shard {self.shard + 1} has 0 samples, but at least 1 is needed")
        if self.batches == 0:
            raise ConfigError(
                f"shard {self.shard + 1} has {len(self.indices)} samples, fewer than batch_size = {self.batch_size}, "
                "and the last, smaller batch is dropped (data.last_batch = 'drop', or head.scatter.unequal = 'error'), "
                "so there is none"
            )

    @property
    def batches(self) -> int:
        """Batches per epoch."""
        return self.deal.batches

    @property
    def samples(self) -> int:
        """Samples per epoch."""
        return self.deal.used

    @property
    def deal(self) -> Deal:
        """The division of the samples into batches."""
        return Deal(len(self.indices), self.batch_size, self.last)

    def train(self, first: int, steps: int) -> Iterator[Batch]:
        """Yield batches number `first` to `first + steps - 1`, counted from the run's start.

        Each epoch has its own order.
        """
        for step, (epoch, rows) in enumerate(self.train_rows(first, steps)):
            yield self.batch(step, rows, epoch)

    def evaluate(self, part: int, parts: int, samples: int) -> Iterator[Batch]:
        """Yield slice `part` of `parts` (0 <= part < parts) of the test set, in order.

        If 0 < `samples` < its size, the slice is of a random subset of that size, the same for every part, shard and
        call.
        """
        test, chosen = self.data.tests(lambda labels: self._slice(len(labels), part, parts, samples))
        for step, rows in enumerate(self._batched(chosen)):
            yield self._batch(step, test, rows)

    def train_rows(self, first: int, steps: int) -> Iterator[tuple[int, Indices]]:
        """Yield the epoch and the sample numbers of each batch of `train`, to build batches of many clients at once."""
        order, order_of, deal = self.indices, -1, self.deal
        for number in range(first, first + steps):
            epoch, offset = divmod(number, deal.batches)
            if epoch != order_of:
                order, order_of = (
                    numpy_generator(self.seed, "shuffle", self.shard, epoch).permutation(self.indices),
                    epoch,
                )
            yield epoch, order[deal.part(offset)]

    def test_rows(self, part: int, parts: int, samples: int) -> Iterator[Indices]:
        """Yield the sample numbers of each batch of `evaluate`."""
        (_, y), _ = self.data.tests()
        return self._batched(self._slice(len(y), part, parts, samples))

    def _slice(self, size: int, part: int, parts: int, samples: int) -> Indices:
        rows = np.arange(size, dtype=np.int64)
        if 0 < samples < size:
            rows = np.sort(numpy_generator(self.seed, "eval").choice(rows, samples, replace=False))
        return rows[len(rows) * part // parts : len(rows) * (part + 1) // parts]

    def _batched(self, rows: Indices) -> Iterator[Indices]:
        """Cut rows into batches.

        A last batch of one sample takes another from the batch before, as some networks need two.
        """
        size = self.batch_size
        short = len(rows) - 2 if len(rows) > size > 2 and len(rows) % size == 1 else len(rows)
        for start in range(0, short, size):
            yield rows[start : min(start + size, short)]
        if short < len(rows):
            yield rows[short:]

    def batch(self, step: int, rows: Indices, epoch: int | None = None) -> Batch:
        """Return these training samples as augmented in that epoch, or without an epoch these test samples."""
        if epoch is None:
            return self._batch(step, self.data.tests()[0], rows)
        held = self.data.held
        places = rows if held is None else np.searchsorted(held, rows)
        if self.augment == "none":
            return self._batch(step, self.data.train, places)
        return self._batch(step, self.data.train, places, lambda stored: self._cropped(stored, rows, epoch))

    def _cropped(self, stored: Tensor, rows: Indices, epoch: int) -> Tensor:
        return crop_flip(stored, rows, lambda row: numpy_generator(self.seed, "augment", epoch, row))

    def _batch(
        self, step: int, source: Samples, places: Indices, change: Callable[[Tensor], Tensor] = lambda stored: stored
    ) -> Batch:
        picked = torch.from_numpy(places)
        stored = change(source[0][picked])
        return Batch(step=step, x=self.data.normalise(stored), y=source[1][picked], stored=stored)


def crop_flip(x: Tensor, rows: Indices, generator: Callable[[int], np.random.Generator]) -> Tensor:
    """Pad images (B, C, H, W) by 4 on all sides, crop each to its size at a random place, and flip half of them.

    `generator` returns the random generator of an image by its row.
    """
    height, width = x.shape[-2:]
    padded = F.pad(x, (4, 4, 4, 4))
    out = torch.empty_like(x)
    for place, row in enumerate(rows):
        top, left, flip = (int(n) for n in generator(int(row)).integers(0, (9, 9, 2)))
        image = padded[place, :, top : top + height, left : left + width]
        out[place] = image.flip(-1) if flip else image
    return out


def share(partition: Partition, labels: Labels, shards: int, shard: int, seed: int) -> Indices:
    """Return the samples of `shard` out of `shards`.

    Raises ConfigError if there is no such shard or too little data.
    """
    if not 0 <= shard < shards:
        raise ConfigError(f"shard {shard + 1}, but {shards} shards are numbered 1 to {shards}")
    if isinstance(partition, OwnData):  # each client has all of its own data: do not build a list of `shards` parts
        return partition.split(labels, 1, seed)[0]
    return partition.split(labels, shards, seed)[shard]


def make_loader(
    data: Data,
    partition: Partition,
    shards: int,
    shard: int,
    batch_size: int,
    seed: int,
    last: LastBatch = "keep",
    augment: Literal["none", "crop_flip"] = "none",
    indices: Indices | None = None,
) -> Loader:
    """Return the loader of `shard` out of `shards`, or of all that `data` holds if it was reduced before.

    `indices`: the shard's samples, if they are already known. Raises ConfigError if there is no such shard or too
    little data.
    """
    if indices is None:
        indices = share(partition, data.train[1].numpy(), shards, shard, seed) if data.held is None else data.held
    return Loader(data, indices, batch_size, seed, shard, last, augment)
