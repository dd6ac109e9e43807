"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from their standard files: the binary version, or the Python one.

The Python version is a pickle, which `pickles` reads without running any code in it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sl_client.data import pickles
from sl_client.data.picking import SampleFilter
from sl_common.errors import DataError
from sl_common.partition import Indices

_PIXELS = 3 * 32 * 32
_RECORDS = 1000  # in memory at once
_Part = tuple[NDArray[np.uint8], NDArray[np.int64]]  # images (N, _PIXELS) and labels (N,)
_Read = Callable[[], Iterator[_Part]]  # one file, in pieces


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """One of the two sets, with the names of its files."""

    name: str
    classes: int
    mean: tuple[float, float, float]  # of the training images, by channel, in [0, 1]
    std: tuple[float, float, float]
    binary: tuple[tuple[str, ...], tuple[str, ...]]  # training and test files
    python: tuple[tuple[str, ...], tuple[str, ...]]
    folders: tuple[str, str]  # of the unpacked archives: binary, python
    label_bytes: int  # before each binary image; the last one is the label
    key: bytes  # of the labels in the Python version


CIFAR10 = Kind(
    name="cifar10",
    classes=10,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    binary=(tuple(f"data_batch_{n}.bin" for n in range(1, 6)), ("test_batch.bin",)),
    python=(tuple(f"data_batch_{n}" for n in range(1, 6)), ("test_batch",)),
    folders=("cifar-10-batches-bin", "cifar-10-batches-py"),
    label_bytes=1,
    key=b"labels",
)
CIFAR100 = Kind(
    name="cifar100",
    classes=100,
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
    binary=(("train.bin",), ("test.bin",)),
    python=(("train",), ("test",)),
    folders=("cifar-100-binary", "cifar-100-python"),
    label_bytes=2,
    key=b"fine_labels",
)


def read(
    kind: Kind, root: Path | None, pick: SampleFilter | None = None
) -> tuple[tuple[Tensor, Tensor], Indices | None]:
    """Return (train, held): images (N, 3, 32, 32) uint8 and labels (N,) int64 of the picked samples, and their indices.

    Besides them only a part of one file is in memory (the Python version: one file). Raises DataError that names file
    or folders.
    """
    train, _ = _files(kind, root)
    x, y, held = _joined(train, pick)
    return (x, y), held


def read_test(kind: Kind, root: Path | None, pick: SampleFilter) -> tuple[Tensor, Tensor]:
    """Return images (N, 3, 32, 32) uint8 and labels (N,) int64 of the N picked test samples. Raises as `read` does."""
    _, test = _files(kind, root)
    x, y, _ = _joined(test, pick)
    return x, y


def _files(kind: Kind, root: Path | None) -> list[list[_Read]]:
    """Return functions that read each training file and each test file."""
    folder, binary = find(kind, root)
    one = _binary if binary else _python
    return [[partial(one, kind, folder / name) for name in names] for names in (kind.binary if binary else kind.python)]


def find(kind: Kind, root: Path | None) -> tuple[Path, bool]:
    """Return the first folder with any of the files, and True for the binary version.

    Raises DataError if there is none.
    """
    env = os.environ.get("SL_DATA")
    roots = [place for place in (root, Path(env) if env else None) if place]
    places = [folder for place in roots for folder in (place, *(place / name for name in kind.folders))]
    for folder in places:
        for names, binary in ((kind.binary, True), (kind.python, False)):
            if any((folder / name).is_file() for name in (*names[0], *names[1])):
                return folder.resolve(), binary
    looked = ", ".join(str(folder) for folder in places) or "no folder: name one with `--data DIR` or SL_DATA"
    raise DataError(
        f"data.name = {kind.name!r}: none of {kind.binary[0][0]} (binary version) or {kind.python[0][0]} "
        f"(Python version) in: {looked}"
    )


def _binary(kind: Kind, path: Path) -> Iterator[_Part]:
    record = kind.label_bytes + _PIXELS
    try:
        size = path.stat().st_size
        if size == 0 or size % record:
            raise DataError(f"{path}: has {size} bytes, which is not a whole number of records of {record}")
        with path.open("rb") as file:
            while data := file.read(_RECORDS * record):
                rows = np.frombuffer(data, np.uint8).reshape(-1, record)
                yield _checked(kind, path, rows[:, kind.label_bytes :], rows[:, kind.label_bytes - 1].astype(np.int64))
    except OSError as error:
        raise _unreadable(path, error) from error


def _python(kind: Kind, path: Path) -> Iterator[_Part]:
    try:
        found = pickles.load_pickle(_bytes(path))
        images, labels = _array(found[b"data"]), _array(found[kind.key]).astype(np.int64)
    except DataError:
        raise
    except Exception as error:  # a damaged pickle raises many kinds of errors
        raise DataError(
            f"{path}: is no batch of {kind.name} in its Python version: {type(error).__name__}: {str(error)[:200]}"
        ) from error
    if images.dtype != np.uint8 or images.ndim != 2 or images.shape[1] != _PIXELS:
        raise DataError(f"{path}: has images {images.dtype} {images.shape}, expected uint8 (N, {_PIXELS})")
    yield _checked(kind, path, images, labels)


def _array(found: Any) -> NDArray[Any]:
    """Convert an array or a list of numbers.

    A list that contains one list many times would grow far beyond the file's size.
    """
    if isinstance(found, list) and not all(type(one) is int for one in found):
        raise TypeError("a list of anything but numbers")
    if not isinstance(found, list | np.ndarray):
        raise TypeError(f"a {type(found).__name__}")
    return np.asarray(found)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: cannot be read: {error.strerror or error}")


def _checked(kind: Kind, path: Path, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> _Part:
    if labels.shape != (len(images),) or len(labels) == 0:
        raise DataError(f"{path}: has {len(images)} images, but labels {labels.shape}")
    if labels.min() < 0 or labels.max() >= kind.classes:
        raise DataError(
            f"{path}: has labels from {labels.min()} to {labels.max()}, {kind.name} has {kind.classes} classes"
        )
    return images, labels


def _joined(files: Sequence[_Read], pick: SampleFilter | None) -> tuple[Tensor, Tensor, Indices | None]:
    """Read the files twice: first for the labels, then for the images that `pick` chose by them."""
    labels = [part for read in files for _, part in read()]
    y, ends = np.concatenate(labels), np.cumsum([len(part) for part in labels])
    held = None if pick is None else pick(y)
    wanted = np.arange(len(y)) if held is None else held
    x, done = np.empty((len(wanted), _PIXELS), np.uint8), 0
    for (images, _), part, end in zip((piece for read in files for piece in read()), labels, ends, strict=True):
        inside = wanted[(wanted >= end - len(part)) & (wanted < end)] - (end - len(part))
        x[done : done + len(inside)] = images[inside]
        done += len(inside)
    return torch.from_numpy(x).view(-1, 3, 32, 32), torch.from_numpy(y[wanted]), held
