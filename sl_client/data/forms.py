"""Conversion of the forms in which a user's own function may return data to tensors x (N, *input) and y (N,).

Nothing is guessed: data without one plain meaning as samples and labels is refused, with the value found and the value
expected.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sized
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler, TensorDataset
from torch.utils.data.dataloader import default_collate

from sl_common.errors import DataError

EXPECTED = "a pair (x, y) of tensors, arrays or lists, x (N, *input) and y (N,), or a torch Dataset of such pairs"
MOST_BYTES = 1 << 33  # of a Dataset, which is read whole
EXACT = 1 << 24  # float32 holds whole numbers exactly up to here


class RawPair(NamedTuple):
    """Samples, and labels that may still be names."""

    x: Tensor
    y: np.ndarray[Any, Any]


def pair_of(field: str, value: object) -> RawPair:
    """Return x as uint8 or float32, and y as an array with its own dtype. Raises DataError that names the field."""
    if isinstance(value, DataLoader):
        value = _data_set_of_loader(field, value)
    if isinstance(value, IterableDataset | Iterator):
        raise DataError(
            f"{field} is a {_kind(value)}, which can be read but once and has no order; expected {EXPECTED}"
        )
    if isinstance(value, TensorDataset):
        value = value.tensors
    if isinstance(value, Dataset):
        value = _read_all(field, value)
    if not isinstance(value, tuple | list) or len(value) != 2:
        count = f" of {len(value)}" if isinstance(value, tuple | list) else ""
        raise DataError(f"{field} is a {_kind(value)}{count}, expected {EXPECTED}")
    return RawPair(_samples(f"{field}.x", value[0]), _array(f"{field}.y", value[1]))


def _data_set_of_loader(field: str, loader: DataLoader[Any]) -> Any:
    """Return a loader's data set, if the loader changes no sample; the run chooses the batches and their order."""
    plain = isinstance(loader.sampler, SequentialSampler | RandomSampler) and loader.collate_fn is default_collate
    if not plain and not isinstance(loader.dataset, IterableDataset):
        raise DataError(
            f"{field} is a DataLoader with a sampler or collate_fn of its own; return a Dataset that has what they do"
        )
    return loader.dataset


def _read_all(field: str, found: Dataset[Any]) -> tuple[Any, Any]:
    """Read all samples of a map-style data set."""
    if not isinstance(found, Sized):
        raise DataError(f"{field} is a {_kind(found)} without __len__; expected {EXPECTED}")
    try:
        count = len(found)
    except (Exception, SystemExit) as error:  # the user's own code
        raise DataError(f"{field} is a {_kind(found)} whose __len__ raises {error!r:.200}") from error
    xs, ys = list[Tensor](), list[np.ndarray[Any, Any]]()
    for number in range(count):
        try:
            one = found[number]
        except (Exception, SystemExit) as error:  # user code may raise anything
            raise DataError(f"{field} is a {_kind(found)} of {count}; sample {number} raises {error!r:.200}") from error
        if not isinstance(one, tuple | list) or len(one) != 2:
            raise DataError(
                f"{field} is a {_kind(found)} whose sample {number} is a {_kind(one)}, expected a pair (x, label)"
            )
        x = _samples(f"{field}[{number}]", one[0])
        if xs and x.shape != xs[0].shape:
            raise DataError(f"{field}[{number}] has shape {tuple(x.shape)}, the first sample has {tuple(xs[0].shape)}")
        if not xs and count * x.numel() * x.element_size() > MOST_BYTES:
            raise DataError(
                f"{field}: {count} samples of {x.numel() * x.element_size()} bytes are more than the {MOST_BYTES} "
                "that are read whole"
            )
        xs.append(x)
        ys.append(_array(f"{field}[{number}] (label)", one[1]))
    if len({one.dtype.kind for one in ys} - set("biuf")) > 1 or len({one.shape for one in ys}) > 1:
        raise DataError(f"{field} is a {_kind(found)} whose labels differ in kind or shape")
    return (torch.stack(xs) if xs else torch.empty(0)), (np.stack(ys) if ys else np.empty(0, np.int64))


def _samples(field: str, value: object) -> Tensor:
    """Return uint8 unchanged, other numbers as float32."""
    plain = isinstance(value, Tensor) and value.layout is torch.strided and not value.is_meta
    if isinstance(value, Tensor) and plain and value.dtype in (torch.uint8, torch.float32):
        return value.detach().cpu()
    array = _array(field, value)
    if array.dtype.kind not in "biuf":
        raise DataError(
            f"{field} is an array of {array.dtype}, expected numbers: uint8 (taken to be 0 to 255) or floats"
        )
    if array.dtype != np.uint8:
        if array.dtype.kind in "iu" and array.size and (array.max() > EXACT or array.min() < -EXACT):
            raise DataError(
                f"{field} has whole numbers from {array.min()} to {array.max()}, "
                f"beyond {EXACT} float32 does not hold them"
            )
        with np.errstate(over="ignore"):  # a number that is too large becomes infinite, which is refused later
            array = array.astype(np.float32)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _array(field: str, value: object) -> np.ndarray[Any, Any]:
    """Return numbers or names as a contiguous array in this machine's byte order. Raises DataError."""
    if isinstance(value, Tensor):
        value = _to_numpy(field, value)
    if value is None or isinstance(value, str | bytes | Mapping | set | frozenset | Iterator) or callable(value):
        raise DataError(f"{field} is a {_kind(value)}, expected a tensor, an array or a list")
    try:
        if isinstance(value, list | tuple) and value and not isinstance(value[0], int | float | str):
            value = np.stack([np.asarray(_to_numpy(field, one) if isinstance(one, Tensor) else one) for one in value])
        array = np.asarray(value)
        if array.dtype.kind == "O":
            array = np.array(array.tolist())
    except DataError:
        raise
    except Exception as error:  # rows of different lengths, or an object whose conversion raises
        raise DataError(
            f"{field} is a {_kind(value)} that is no array: {error!s:.200}; expected a tensor, an array or a list"
        ) from error
    if isinstance(value, np.ma.MaskedArray) and value.mask.any():
        raise DataError(f"{field} is a masked array, and masked samples have no values")
    if array.dtype.kind not in "biufUST":
        raise DataError(
            f"{field} is an array of {array.dtype}, expected numbers" + (" or class names" if ".y" in field else "")
        )
    if array.dtype.kind in "biuf":
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return np.ascontiguousarray(array).reshape(array.shape)


def _to_numpy(field: str, tensor: Tensor) -> np.ndarray[Any, Any]:
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_complex() or tensor.is_meta:
        raise DataError(
            f"{field} is a tensor of {tensor.dtype} ({tensor.layout}), expected a dense one of real numbers"
        )
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point() and tensor.dtype not in (torch.float32, torch.float64):
        tensor = tensor.float()
    return tensor.resolve_neg().numpy()


def labels_of(raw: dict[str, np.ndarray[Any, Any]], classes: int) -> dict[str, Tensor]:
    """Return class numbers for all sets of one client, by field.

    Names are numbered alphabetically, if all classes have one here.
    """
    raw = {field: _decoded(f"{field}.y", y) if y.dtype.kind == "S" else y for field, y in raw.items()}
    names = {field: y for field, y in raw.items() if y.dtype.kind in "UT"}
    numbers = _numbering(names, classes) if names else {}
    return {field: torch.from_numpy(_numbered(f"{field}.y", y, classes, numbers)) for field, y in raw.items()}


def _decoded(field: str, names: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Names as text, which HDF5 and some text files give as bytes. Raises DataError."""
    try:
        return np.char.decode(names, "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{field} holds names as bytes that are not UTF-8: {error}") from error


def _numbering(named: Mapping[str, np.ndarray[Any, Any]], classes: int) -> dict[str, int]:
    names = sorted({str(name) for y in named.values() for name in np.unique(y)})
    if all(name.strip().isdecimal() for name in names):
        return {name: int(name) for name in names}
    if len(names) != classes:
        shown = ", ".join(repr(name) for name in names[:5]) + (", …" if len(names) > 5 else "")
        raise DataError(
            f"labels of {', '.join(named)} are {len(names)} names ({shown}), the model has {classes} classes: "
            "names are numbered in alphabetical order where all classes are here; "
            "otherwise return numbers, the same on every client"
        )
    return {name: number for number, name in enumerate(names)}


def _numbered(field: str, y: np.ndarray[Any, Any], classes: int, numbers: Mapping[str, int]) -> np.ndarray[Any, Any]:
    """Convert (N,), (N, 1) or one-hot (N, classes) -> (N,) int64."""
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.dtype.kind in "UT":
        return np.array([numbers[str(name)] for name in y.reshape(-1)], np.int64).reshape(y.shape)
    if y.ndim == 2 and y.shape[1] == classes and y.size:
        if not (((y == 0) | (y == 1)).all() and (y.sum(axis=1) == 1).all()):
            raise DataError(f"{field} has shape {y.shape} and is not one-hot: expected one class number per sample")
        return np.argmax(y, axis=1).astype(np.int64)  # type: ignore[no-any-return]
    if y.dtype.kind == "f" and not (np.isfinite(y).all() and (y == np.floor(y)).all() and (np.abs(y) < 2**53).all()):
        raise DataError(
            f"{field} holds {y.dtype} numbers that are not whole: expected class numbers from 0 to {classes - 1}"
        )
    if y.dtype.kind == "u" and y.size and y.max() > np.iinfo(np.int64).max:
        raise DataError(f"{field} reaches to {y.max()}: expected class numbers from 0 to {classes - 1}")
    return y.astype(np.int64)


def scale_of(field: str, value: object) -> float | tuple[float, ...]:
    """Return a number, or one for each channel. Raises DataError that names the field."""
    if isinstance(value, float):
        return value
    array = _array(field, value)
    if array.dtype.kind not in "biuf" or array.ndim > 1:
        raise DataError(
            f"{field} is an array of {array.dtype} {array.shape}, expected a number, or one for each channel"
        )
    return float(array) if array.ndim == 0 else tuple(float(one) for one in array)


def classes_of(value: object) -> int:
    """Return the number of classes. Raises DataError if the value is not a whole number."""
    try:
        return int(value.__index__())  # type: ignore[attr-defined]
    except (AttributeError, TypeError):
        raise DataError(f"data.classes is a {_kind(value)} ({value!r:.60}), expected a number of classes") from None


def _kind(value: object) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ in ("builtins", "numpy", "torch") else f"{kind.__module__}.{kind.__name__}"
