"""The two workloads, for the loops that have nothing of our system but its networks."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.data import images
from sl_common.models import build, split

BATCH = 64
LR, MOMENTUM = 0.05, 0.9


@dataclass(frozen=True, slots=True)
class Workload:
    """A network cut after its first block, and how many steps make one measurement."""

    name: str
    cut: tuple[int, ...]  # shape of one sample at the cut
    steps: int
    text: str

    def segments(self) -> tuple[nn.Sequential, nn.Sequential]:
        """(lower, head), the same modules as in our system, from the same seed."""
        return split(build(self.name, input=(1, 28, 28), classes=10, args={}, seed=0), 1)


WORKLOADS = {
    w.name: w
    for w in (
        Workload("mlp", (256,), 1500, "Linear 784→256 + ReLU | Linear 256→10"),
        Workload(
            "cnn", (32, 14, 14), 60, "Conv 1→32 + ReLU + pool | Conv 32→64 + ReLU + pool, Linear 3136→128 + ReLU, →10"
        ),
    )
}


def sgd(module: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of both sides."""
    return torch.optim.SGD(module.parameters(), lr=LR, momentum=MOMENTUM)


def batches(steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """`steps` shuffled batches: x (64, 1, 28, 28) float32, y (64,) int64.

    The whole set is normalised before the first of them: the reference loops pay for picking rows only, our system normalises
    each batch.
    """
    data = images()
    x, y = data.normalise(data.train[0]), data.train[1]
    whole = len(y) // BATCH
    for step in range(steps):
        if step % whole == 0:
            order = torch.randperm(len(y), generator=torch.Generator().manual_seed(step))
        rows = order[step % whole * BATCH :][:BATCH]
        yield x[rows], y[rows]


def one_thread() -> None:
    """Call first in every measured process."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="The given buffer is not writable")  # we only read what came
