"""The identity of a data set, equal on every processor: a digest of sizes, types, labels and some samples.

Law: the digest is taken before normalisation. The bytes of floating point samples are digested only if the set is a
client's own. A shared set may have been computed on each device with other last bits, so the means of some samples are
compared in place of bytes.
"""

from __future__ import annotations

import hashlib
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from sl_client.data import Data
from sl_common.holdings import MAX_MEANS, MAX_SCALES, DataSet, Inputs
from sl_common.partition import Indices, Labels
from sl_common.seeds import numpy_generator
from sl_common.tensors import raw_bytes, stride

_ROWS = MAX_MEANS // 4  # samples of each part that are digested or have their two means taken
_NUMBERS = 1024  # of a sample that are digested
_known: WeakKeyDictionary[Data, dict[bool, DataSet]] = WeakKeyDictionary()  # a simulation asks for each client


def sampled_rows(labels: Labels) -> Indices:
    """Return the samples, in rising order, that `data_set_of` needs from a part with these labels."""
    count = len(labels)
    return np.sort(numpy_generator("data", "rows", count).choice(count, min(count, _ROWS), replace=False))


def data_set_of(data: Data, labels: Labels | None = None, *, own: bool) -> DataSet:
    """Return the identity of a set. `own`: the set belongs to this client alone and is not shared out among all.

    `labels`: those of the whole training part, if `data` was reduced; it must have kept the samples of `sampled_rows`.
    """
    found = _known.setdefault(data, {})
    if own not in found:
        found[own] = _data_set(data, data.train[1].numpy() if labels is None else labels, own)
    return found[own]


def _data_set(data: Data, labels: Labels, own: bool) -> DataSet:
    rows = sampled_rows(labels)
    places = rows if data.held is None else np.searchsorted(data.held, rows)
    x = data.train[0]
    train = x[torch.from_numpy(places)]
    test_labels: list[Labels] = []

    def pick(found: Labels) -> Indices:
        test_labels.append(found)
        return sampled_rows(found)

    (stored, y), places = data.tests(pick)
    if not test_labels:  # a user's function read the whole set and did not call `pick`
        places = pick(y.numpy())
    test = stored[torch.from_numpy(places)]
    floats = not own and x.is_floating_point()
    return DataSet(
        train=len(labels),
        test=len(test_labels[0]),
        train_sha256=_digest("train", train, labels, numbers=not floats),
        test_sha256=_digest("test", test, test_labels[0], numbers=not floats),
        means=(*_means(train), *_means(test)) if floats else (),
        inputs=_inputs(data),
    )


def _inputs(data: Data) -> Inputs:
    low, high = (float(bound) for bound in data.train[0].aminmax())
    mean, std = _few(data.mean), _few(data.std)
    return Inputs(dtype=str(data.train[0].dtype).removeprefix("torch."), low=low, high=high, mean=mean, std=std)


def _few(scale: float | tuple[float, ...]) -> tuple[float, ...]:
    numbers = scale if isinstance(scale, tuple) else (scale,)
    return tuple(float(number) for number in numbers) if len(numbers) <= MAX_SCALES else ()


def _digest(part: str, x: Tensor, labels: Labels, *, numbers: bool) -> bytes:
    sha = hashlib.sha256(f"{part}\0{len(labels)}\0{x.dtype}\0{tuple(x.shape[1:])}\0".encode())
    sha.update(np.ascontiguousarray(labels, "<i8").data.cast("B"))
    if numbers:
        flat = x.reshape(len(x), -1)
        sha.update(raw_bytes(flat[:, :: stride(flat.shape[1], _NUMBERS)].contiguous()))
    return sha.digest()


def _means(x: Tensor) -> tuple[float, ...]:
    """Return each sample's mean, and a mean in which later numbers weigh more, so that it depends on their order."""
    flat = x.reshape(len(x), -1).to(torch.float64)
    rising = torch.arange(1, flat.shape[1] + 1, dtype=torch.float64) / flat.shape[1]
    return (*flat.mean(dim=1).tolist(), *(flat * rising).mean(dim=1).tolist())
