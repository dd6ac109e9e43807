"""The images that every benchmark trains on, as a data function of our own (`benchmarks.data:images`).

Fashion-MNIST if its files are here, otherwise as many seeded random pixels of the same shape and type: good enough for timing,
and for nothing else. Held out are only so many images that the evaluation after the last round is short.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from sl_client.data import Data
from sl_client.data import fashion_mnist as fashion
from sl_common.errors import DataError

HELD_OUT = 2_000
FEW = 6_400


def images(root: Path | None = None) -> Data:
    """60,000 images (1, 28, 28) uint8 in ten classes, and HELD_OUT more. `root` is a folder to look in first."""
    try:
        folder = fashion.find(fashion.places(root))
        train, _ = fashion.read(folder)
        test = fashion.read_test(folder, lambda _labels: np.arange(HELD_OUT))
    except DataError:
        train, test = _pixels(60_000, seed=0), _pixels(HELD_OUT, seed=1)
    return Data(train=train, test=test, mean=fashion.MEAN, std=fashion.STD, classes=fashion.CLASSES)


def coloured(root: Path | None = None) -> Data:
    """The first FEW of them as (3, 32, 32): a frame of black around them, the same in all colours."""
    grey = images(root)
    train, test = (
        (F.pad(x[:FEW], (2, 2, 2, 2)).expand(-1, 3, -1, -1).contiguous(), y[:FEW])
        for x, y in (grey.train, grey.tests()[0])
    )
    return Data(train=train, test=test, mean=grey.mean, std=grey.std, classes=grey.classes)


def what() -> str:
    """Which of the two `images` gives here."""
    try:
        fashion.find(fashion.places(None))
    except DataError:
        return "seeded random pixels (Fashion-MNIST's files are not here)"
    return "fashion-mnist"


def _pixels(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randint(256, (count, 1, 28, 28), dtype=torch.uint8, generator=draw)
    return x, torch.randint(fashion.CLASSES, (count,), generator=draw)
