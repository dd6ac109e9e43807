"""Waves of clients in a stacked simulation, and their next batches, made together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sl_common.batch import Batch
from sl_common.messages.training import Begin
from sl_common.partition import Indices
from sl_common.protocol import WaveTally
from sl_server.simulation.simulation import SimulatedClient
from sl_server.simulation.vectorized.stack import Pass, Stack

SamplePick = tuple[int | None, Indices]  # epoch (None for held-out data), and the numbers of the samples


class Rows(Protocol):
    """A client's data, by the samples of each batch."""

    @property
    def data(self) -> object:
        """The data set that the samples' numbers refer to."""
        ...

    @property
    def augment(self) -> str:
        """Augmentation of a sample from epoch to epoch, or none."""
        ...

    def train_rows(self, first: int, steps: int) -> Iterator[SamplePick]:
        """Return the samples of batches `first` to `first + steps`, counted since the run began."""
        ...

    def test_rows(self, part: int, parts: int, samples: int) -> Iterator[Indices]:
        """Return the samples of the batches of one slice of the test set."""
        ...

    def batch(self, step: int, rows: Indices, epoch: int | None) -> Batch:
        """Return a batch of these samples."""
        ...


@dataclass(kw_only=True, slots=True, eq=False)
class StackedWave:
    """One client's current wave."""

    client: SimulatedClient
    place: int
    begin: Begin
    rows: Rows
    coming: Iterator[SamplePick]
    following: SamplePick | None = None
    steps: int = 0
    samples: int = 0
    awaits: Pass | None = None  # the pass that awaits its gradient
    dz: Tensor | None = None  # the gradient, once it has arrived

    def look_ahead(self) -> None:
        """Fetch the next batch into `following`; None after the last."""
        self.following = next(self.coming, None)

    def tally(self) -> WaveTally:
        """Return the totals of the wave."""
        return WaveTally(steps=self.steps, samples=self.samples)

    @property
    def learns(self) -> bool:
        """True if the batches are answered by gradients."""
        return self.begin.directive.update and not self.begin.evaluate


def open_wave(client: SimulatedClient, begin: Begin, rows: Rows) -> StackedWave:
    """Begin a client's wave."""
    assert client.seat is not None
    coming: Iterator[SamplePick] = rows.train_rows(begin.first, begin.steps)
    if begin.evaluate:
        coming = ((None, batch) for batch in rows.test_rows(begin.slice, begin.slices, begin.samples))
    wave = StackedWave(client=client, place=client.seat.shard, begin=begin, rows=rows, coming=coming)
    wave.look_ahead()
    return wave


def groups(stack: Stack, waves: Sequence[StackedWave]) -> list[list[StackedWave]]:
    """Yield groups that can compute together: batches of one size, segments of one age."""
    found: dict[tuple[object, ...], list[StackedWave]] = {}
    for wave in waves:
        if wave.following is not None:
            epoch, rows = wave.following
            age = stack.age(wave.place) if wave.learns else 0
            key = (age, len(rows), None if wave.rows.augment == "none" else epoch)
            found.setdefault(key, []).append(wave)
    return list(found.values())


def next_batches(group: Sequence[StackedWave]) -> tuple[Tensor, Tensor]:
    """Return x (G, B, *input) and y (G, B), as each loader would give them; one indexing if all share the same data."""
    own = [(wave.rows, *wave.following) for wave in group if wave.following is not None]
    loader, epoch, _ = own[0]
    if all(rows.data is loader.data for rows, _, _ in own):
        batch = loader.batch(0, np.concatenate([picked for _, _, picked in own]), epoch)
        return batch.x.view(len(own), -1, *batch.x.shape[1:]), batch.y.view(len(own), -1)
    batches = [rows.batch(0, picked, epoch) for rows, epoch, picked in own]
    return torch.stack([batch.x for batch in batches]), torch.stack([batch.y for batch in batches])
