"""Fashion-MNIST (Xiao, Rasul and Vollgraf, arXiv:1708.07747) from its four IDX files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sl_client.data.idx import read_idx, read_rows
from sl_client.data.picking import SampleFilter
from sl_common.errors import DataError
from sl_common.partition import Indices

MEAN, STD = 0.2860, 0.3530  # of the training images, scaled to [0, 1]
CLASSES = 10
SYSTEM = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package puts it

_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def places(root: Path | None) -> list[Path]:
    """Return the folders to search, in order: `root`, the environment's SL_DATA, the system's copy."""
    named = [root] if root else []
    if from_env := os.environ.get("SL_DATA"):
        named.append(Path(from_env))
    return [folder for place in named for folder in (place, place / "fashion-mnist")] + [SYSTEM]


def find(folders: Sequence[Path]) -> Path:
    """Return the first folder with any of the files.

    Raises DataError with all the folders and a way to get the data.
    """
    for folder in folders:
        if any(_path(folder, name) for name in _FILES):
            return folder.resolve()
    looked = ", ".join(str(folder) for folder in folders)
    raise DataError(
        f"data.name = 'fashion-mnist': no {_FILES[0]}[.gz] in any of: {looked}; "
        "get it with `apt-get install dataset-fashion-mnist`, or name its folder with `--data DIR`"
    )


def read(folder: Path, pick: SampleFilter | None = None) -> tuple[tuple[Tensor, Tensor], Indices | None]:
    """Return (train, held): images (N, 1, 28, 28) uint8 and labels (N,) int64 of the picked samples, and their indices.

    Raises DataError that names the file.
    """
    x, y, held = _pair(folder, *_FILES[:2], pick)
    return (x, y), held


def read_test(folder: Path, pick: SampleFilter) -> tuple[Tensor, Tensor]:
    """Return images (N, 1, 28, 28) uint8 and labels (N,) int64 of the N picked test samples. Raises as `read` does."""
    x, y, _ = _pair(folder, *_FILES[2:], pick)
    return x, y


def _pair(
    folder: Path, images_name: str, labels_name: str, pick: SampleFilter | None
) -> tuple[Tensor, Tensor, Indices | None]:
    images, labels = _existing(folder, images_name), _existing(folder, labels_name)
    y = read_idx(labels, dims=1).astype(np.int64)
    held = None if pick is None else pick(y)
    x, count = read_rows(images, dims=3, rows=held)
    if count != len(y):
        raise DataError(f"{images} has {count} images, but {labels} has {len(y)} labels")
    return torch.from_numpy(x).unsqueeze(1), torch.from_numpy(y if held is None else y[held]), held


def _path(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _existing(folder: Path, name: str) -> Path:
    path = _path(folder, name)
    if path is None:  # this folder has others of the four files: files of another folder would hide the fault
        raise DataError(f"{folder}: no {name} or {name}.gz beside the other files of fashion-mnist")
    return path
