"""Handwritten digits that come with the package, so that nothing need be downloaded (source and changes: DIGITS.md)."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import torch
from torch import Tensor

MEAN, STD = 0.3059, 0.3763  # of the training images, scaled to [0, 1]
CLASSES = 10


def read() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return (train, test) as pairs of images (N, 1, 8, 8) uint8 and labels (N,) int64.

    Every fifth sample is for testing.
    """
    with files(__package__).joinpath("digits.npz").open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        x, y = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"]).long()
    test = torch.arange(len(y)) % 5 == 4
    return (x[~test], y[~test]), (x[test], y[test])
