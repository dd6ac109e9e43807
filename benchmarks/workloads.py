"""The workloads, for the loops that have nothing of our system but its networks."""

from __future__ import annotations

import tomllib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks import data
from benchmarks.wide import COPIES, PIXELS
from sl_common.models import build, split_blocks

BATCH = 64
LR, MOMENTUM = 0.05, 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A network, where it is cut, and how many steps make one measurement."""

    name: str
    text: str
    cut: tuple[int, ...]  # shape of one sample at the cut
    steps: int
    model: str = ""  # as in a configuration; by default the name
    args: str = ""  # of the model, as TOML
    after: int = 1  # so many blocks are the client's
    input: tuple[int, ...] = (1, 28, 28)
    data: str = "images"  # a function of benchmarks.data
    usual: bool = False  # what `--workload all` means

    def segments(self) -> tuple[nn.Sequential, nn.Sequential]:
        """(lower, head), the same modules as in our system, from the same seed."""
        args = tomllib.loads(self.args)
        return split_blocks(build(self.model or self.name, input=self.input, classes=10, args=args, seed=0), self.after)


WORKLOADS = {
    w.name: w
    for w in (
        Workload(name="mlp", text="Linear 784→256 + ReLU | Linear 256→10", cut=(256,), steps=1500, usual=True),
        Workload(
            name="cnn",
            text="Conv 1→32 + ReLU + pool | Conv 32→64 + ReLU + pool, Linear 3136→128 + ReLU, →10",
            cut=(32, 14, 14),
            steps=60,
            usual=True,
        ),
        Workload(
            name="resnet18",
            text="ResNet-18 of 32×32 images with CIFAR's stem, cut after its first stage: 16.8 MB each way",
            cut=(64, 32, 32),
            steps=3,
            args='stem = "cifar"',
            after=3,
            input=(3, 32, 32),
            data="coloured",
        ),
        Workload(
            name="wide",
            text="an image many times over | the mean of its copies, Linear 1024→10: 16.8 MB each way and next to no computation",
            cut=(COPIES, PIXELS),
            steps=40,
            model="benchmarks.wide:wide",
        ),
    )
}


def chosen(name: str) -> list[Workload]:
    """Those that `--workload NAME` means."""
    return [w for w in WORKLOADS.values() if w.usual] if name == "all" else [WORKLOADS[name]]


def name_of(page: str, workload: str) -> str:
    """Of the page of `--workload NAME`, so that one workload's numbers can be taken anew without another's."""
    return page if workload == "all" else f"{page}-{workload}"


def sgd(module: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of both sides."""
    return torch.optim.SGD(module.parameters(), lr=LR, momentum=MOMENTUM)


def batches(workload: Workload, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """`steps` shuffled batches: x (64, *input) float32, y (64,) int64.

    The whole set is normalised before the first of them: the reference loops pay for picking rows only, our system normalises
    each batch.
    """
    found = getattr(data, workload.data)()
    x, y = found.normalise(found.train[0]), found.train[1]
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
