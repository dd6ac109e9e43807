"""A client's batches as a pure function of the position: with no state, waves and restarts simply go on."""

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
    """The batches of one shard. Raises ConfigError if there is no sample, or no whole batch where the last is dropped."""

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
                "and without the last, smaller one (data.last_batch = 'drop', or head.scatter.unequal = 'error') there is no batch"
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
        """How the samples become batches."""
        return Deal(len(self.indices), self.batch_size, self.last)

    def train(self, first: int, steps: int) -> Iterator[Batch]:
        """Batches number `first` to `first + steps - 1` since the run began, each epoch in an order of its own."""
        for step, (epoch, rows) in enumerate(self.train_rows(first, steps)):
            yield self.batch(step, rows, epoch)

    def evaluate(self, part: int, parts: int, samples: int) -> Iterator[Batch]:
        """Slice `part` of `parts` (0 <= part < parts) of the test set, in order.

        If 0 < `samples` < its size, of a random subset of that many, which is the same for every part, shard and call.
        """
        test, chosen = self.data.tests(lambda labels: self._slice(len(labels), part, parts, samples))
        for step, rows in enumerate(self._batched(chosen)):
            yield self._batch(step, test, rows)

    def train_rows(self, first: int, steps: int) -> Iterator[tuple[int, Indices]]:
        """The epoch and the samples of each batch that `train` gives, for whoever makes the batches of many clients at once."""
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
        """The samples of each batch that `evaluate` gives."""
        (_, y), _ = self.data.tests()
        return self._batched(self._slice(len(y), part, parts, samples))

    def _slice(self, size: int, part: int, parts: int, samples: int) -> Indices:
        rows = np.arange(size, dtype=np.int64)
        if 0 < samples < size:
            rows = np.sort(numpy_generator(self.seed, "eval").choice(rows, samples, replace=False))
        return rows[len(rows) * part // parts : len(rows) * (part + 1) // parts]

    def _batched(self, rows: Indices) -> Iterator[Indices]:
        """A last one of a single sample takes another from the batch before: not every network can be asked about one."""
        size = self.batch_size
        short = len(rows) - 2 if len(rows) > size > 2 and len(rows) % size == 1 else len(rows)
        for start in range(0, short, size):
            yield rows[start : min(start + size, short)]
        if short < len(rows):
            yield rows[short:]

    def batch(self, step: int, rows: Indices, epoch: int | None = None) -> Batch:
        """These training samples as they are in that epoch, or without one these test samples; any client's, since all have one `data`."""
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
    """(B, C, H, W) padded by 4 on all sides, cropped back at a drawn place and flipped or not, each image by its own draw."""
    height, width = x.shape[-2:]
    padded = F.pad(x, (4, 4, 4, 4))
    out = torch.empty_like(x)
    for place, row in enumerate(rows):
        top, left, flip = (int(n) for n in generator(int(row)).integers(0, (9, 9, 2)))
        image = padded[place, :, top : top + height, left : left + width]
        out[place] = image.flip(-1) if flip else image
    return out


def share(partition: Partition, labels: Labels, shards: int, shard: int, seed: int) -> Indices:
    """The samples of `shard` out of `shards`; raises ConfigError if there is no such shard or too little data."""
    if not 0 <= shard < shards:
        raise ConfigError(f"shard {shard + 1}, but {shards} shards are numbered 1 to {shards}")
    if isinstance(partition, OwnData):  # a list of as many parts as the server says is no use
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
    """The loader of `shard` out of `shards`, or of what `data` was reduced to before; raises ConfigError if there is no such shard or too little data.

    `indices`: the shard's samples, if they were dealt before.
    """
    if indices is None:
        indices = share(partition, data.train[1].numpy(), shards, shard, seed) if data.held is None else data.held
    return Loader(data, indices, batch_size, seed, shard, last, augment)
