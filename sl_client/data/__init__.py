"""Data sets of a client: loaded as they are stored, checked once, and converted to floats one batch at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sl_client.data import cifar, digits, fashion_mnist, own
from sl_client.data.picking import SampleFilter, keep_all
from sl_common.errors import DataError
from sl_common.imports import is_user_code
from sl_common.partition import Indices
from sl_common.suggestions import did_you_mean


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """The mean and the standard deviation of a set's samples, which are scaled to [0, 1] if they are uint8."""

    mean: float | tuple[float, ...] = 0.0
    std: float | tuple[float, ...] = 1.0

    def normalise(self, x: Tensor) -> Tensor:
        """x (B, *input) as stored -> (B, *input) float32, minus the mean, divided by the std."""
        scaled = x.float().div_(255) if x.dtype == torch.uint8 else x.float()
        return ((scaled - _per_channel(self.mean, x)) / _per_channel(self.std, x)).contiguous()


Samples = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class Data:
    """A data set. `mean` and `std` (one, or one per channel) are of x, scaled to [0, 1] if it is uint8."""

    train: Samples  # x (N, *input) uint8 or float32, y (N,) int64
    test: Samples | Callable[[SampleFilter], Samples]  # a function reads the picked samples anew at each call
    mean: float | tuple[float, ...] = 0.0
    std: float | tuple[float, ...] = 1.0
    classes: int
    held: Indices | None = None  # if train was reduced to one client's samples: their indices in the whole set

    def tests(self, pick: SampleFilter = keep_all) -> tuple[Samples, Indices]:
        """Return test samples, and the places among them of those that `pick` chose.

        A set that is read anew returns only those. Raises DataError if the samples cannot be read.
        """
        if not callable(self.test):
            return self.test, pick(self.test[1].numpy())
        x, y = self.test(pick)
        return (x, y), np.arange(len(y))

    def only(self, rows: Indices) -> Data:
        """Return the set with a copy of these training samples only, `rows` in rising order, and the same test set."""
        if len(rows) == len(self.train[1]):
            return self
        picked, (x, y) = torch.from_numpy(rows), self.train
        return replace(self, train=(x[picked], y[picked]), held=rows)

    def check(self, input: Sequence[int], classes: int) -> None:
        """Raise DataError if a model with this input shape and number of classes cannot learn from this set."""
        if self.classes != classes:
            raise DataError(f"data.classes = {self.classes}, but the model has {classes} classes")
        _check_scale("data.mean", self.mean, input)
        _check_scale("data.std", self.std, input)
        if min(_numbers(self.std)) <= 0:
            raise DataError(f"data.std = {self.std}, but it must be > 0")
        for field, (x, y) in (("data.train", self.train), ("data.test", self.tests()[0])):
            _check_x(f"{field}.x", x, tuple(input))
            _check_y(f"{field}.y", y, len(x), classes)

    def normalise(self, x: Tensor) -> Tensor:
        """x (B, *input) as stored -> (B, *input) float32, minus the set's mean, divided by its std."""
        return Scale(mean=self.mean, std=self.std).normalise(x)


def load_data(name: str, root: Path | None, allowed: Collection[str] | None, pick: SampleFilter | None = None) -> Data:
    """Load the set called `name`: built in, or a `package.module:function` from a package in `allowed` (None: any).

    `root` is the folder to look in first. Raises DataError if the set is unknown, missing or damaged, ConfigError if
    the user's function may not or cannot be imported. The set is not compared with a model: see `Data.check`. `pick`
    chooses by the labels which training samples are needed; of large sets the others are not kept, and the test set is
    read anew at each use.
    """
    if is_user_code(name):
        return _converted(name, own.call_function(name, root, allowed, Data))
    if name in _BUILT_IN:
        return _BUILT_IN[name](root, pick)
    hint = did_you_mean(name, _BUILT_IN, cutoff=0.4).removeprefix(", ")
    known = ", ".join(sorted(_BUILT_IN))
    raise DataError(
        f"data.name = {name!r} is unknown; {hint and hint + ' '}known: {known}, or your own `package.module:function`"
    )


def _converted(name: str, found: Data) -> Data:
    """Convert the return value of the user's function to tensors and numbers.

    Raises DataError that names the function.
    """
    from sl_client.data import forms  # imports torch's loaders, which no built-in set needs

    try:
        classes, test = forms.classes_of(found.classes), found.test
        raw = {"data.train": forms.pair_of("data.train", found.train)}
        reads = callable(test) and not hasattr(test, "__getitem__")
        if not reads:
            raw["data.test"] = forms.pair_of("data.test", test)
        y = forms.labels_of({field: one.y for field, one in raw.items()}, classes)
        pairs: dict[str, Samples] = {field: (one.x, y[field]) for field, one in raw.items()}
        mean, std = forms.scale_of("data.mean", found.mean), forms.scale_of("data.std", found.std)
    except DataError as error:
        raise DataError(f"data.name = {name!r} returned data that cannot be trained on: {error}") from error
    tests = _reading(name, test, classes) if callable(test) and reads else pairs["data.test"]
    return replace(found, train=pairs["data.train"], test=tests, mean=mean, std=std, classes=classes)


def _reading(name: str, read: Callable[[SampleFilter], object], classes: int) -> Callable[[SampleFilter], Samples]:
    """A user's function that reads test samples, with what it returns made plain as that of a whole set is."""
    from sl_client.data import forms

    def tests(pick: SampleFilter) -> Samples:
        found = own.asked(name, read, pick)
        try:
            raw = forms.pair_of("data.test", found)
            return raw.x, forms.labels_of({"data.test": raw.y}, classes)["data.test"]
        except DataError as error:
            raise DataError(f"data.name = {name!r} returned data that cannot be trained on: {error}") from error

    return tests


def data_scale(name: str, root: Path | None, allowed: Collection[str] | None) -> Scale:
    """Return the scale by which training normalises, for a built-in set without its files.

    Raises as `load_data` does.
    """
    if name in _SCALES:
        return _SCALES[name]
    data = load_data(name, root, allowed)
    return Scale(mean=data.mean, std=data.std)


# Cached, because a simulation loads the set once for each client, and shared, because nothing writes to a Data.
@lru_cache(maxsize=1)
def _digits() -> Data:
    train, test = digits.read()
    return Data(train=train, test=test, mean=digits.MEAN, std=digits.STD, classes=digits.CLASSES)


def _fashion_mnist(folder: Path, pick: SampleFilter | None = None) -> Data:
    train, held = fashion_mnist.read(folder, pick)
    test = partial(fashion_mnist.read_test, folder)
    norm = {"mean": fashion_mnist.MEAN, "std": fashion_mnist.STD}
    return Data(train=train, test=test if pick else test(keep_all), **norm, classes=fashion_mnist.CLASSES, held=held)


def _cifar(kind: cifar.Kind, root: Path | None, pick: SampleFilter | None = None) -> Data:
    train, held = cifar.read(kind, root, pick)
    test = partial(cifar.read_test, kind, root)
    norm = {"mean": kind.mean, "std": kind.std}
    return Data(train=train, test=test if pick else test(keep_all), **norm, classes=kind.classes, held=held)


_whole_fashion_mnist, _whole_cifar = lru_cache(maxsize=1)(_fashion_mnist), lru_cache(maxsize=2)(_cifar)


def _find_fashion_mnist(root: Path | None, pick: SampleFilter | None) -> Data:
    folder = fashion_mnist.find(fashion_mnist.places(root))
    return _fashion_mnist(folder, pick) if pick else _whole_fashion_mnist(folder)


def _find_cifar(kind: cifar.Kind) -> Callable[[Path | None, SampleFilter | None], Data]:
    return lambda root, pick: _cifar(kind, root, pick) if pick else _whole_cifar(kind, root)


_BUILT_IN: dict[str, Callable[[Path | None, SampleFilter | None], Data]] = {
    "digits": lambda _root, _pick: _digits(),
    "cifar10": _find_cifar(cifar.CIFAR10),
    "cifar100": _find_cifar(cifar.CIFAR100),
    "fashion-mnist": _find_fashion_mnist,
}


_SCALES = {
    "digits": Scale(mean=digits.MEAN, std=digits.STD),
    "cifar10": Scale(mean=cifar.CIFAR10.mean, std=cifar.CIFAR10.std),
    "cifar100": Scale(mean=cifar.CIFAR100.mean, std=cifar.CIFAR100.std),
    "fashion-mnist": Scale(mean=fashion_mnist.MEAN, std=fashion_mnist.STD),
}


def _numbers(value: float | tuple[float, ...]) -> tuple[float, ...]:
    return value if isinstance(value, tuple) else (value,)


def _per_channel(value: float | tuple[float, ...], x: Tensor) -> float | Tensor:
    """Shape one number per channel so that it broadcasts along dimension 1 of x."""
    return torch.tensor(value).view(-1, *[1] * (x.dim() - 2)) if isinstance(value, tuple) else value


def _check_scale(field: str, value: float | tuple[float, ...], shape: Sequence[int]) -> None:
    channels = shape[0] if shape else 0
    if isinstance(value, tuple) and len(value) != channels:
        raise DataError(
            f"{field} has {len(value)} numbers, but the model's input {tuple(shape)} has {channels} channels"
        )
    if not all(math.isfinite(number) for number in _numbers(value)):
        raise DataError(f"{field} = {value}, but it must be finite")


def _check_x(field: str, x: Tensor, shape: tuple[int, ...]) -> None:
    _check_tensor(field, x, (torch.uint8, torch.float32))
    if x.dim() == 0 or tuple(x.shape[1:]) != shape:
        raise DataError(
            f"{field} has shape {tuple(x.shape)}, but the model's input makes it (N, {', '.join(map(str, shape))})"
        )
    if len(x) == 0:
        raise DataError(f"{field} has 0 samples, but at least 1 is needed")
    lowest, highest = (bound.item() for bound in x.aminmax())  # both are NaN if any is; isfinite() would copy the set
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        raise DataError(f"{field} runs from {lowest} to {highest}, but every value must be finite")


def _check_y(field: str, y: Tensor, samples: int, classes: int) -> None:
    _check_tensor(field, y, (torch.int64,))
    if tuple(y.shape) != (samples,):
        raise DataError(f"{field} has shape {tuple(y.shape)}, but x has {samples} samples, which makes it ({samples},)")
    lowest, highest = (int(bound) for bound in y.aminmax())
    if lowest < 0 or highest >= classes:
        raise DataError(
            f"{field} has labels from {lowest} to {highest}, but {classes} classes are labelled 0 to {classes - 1}"
        )


def _check_tensor(field: str, value: object, dtypes: Sequence[torch.dtype]) -> None:
    found = value.dtype if isinstance(value, Tensor) else type(value).__name__
    if found not in dtypes:
        raise DataError(f"{field} is {found}, but must be a tensor of {' or '.join(map(str, dtypes))}")
