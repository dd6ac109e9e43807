"""The forms in which people return data of their own: converted, or refused in words that name the function and the field."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, SubsetRandomSampler, TensorDataset
from world import make_config

from sl_client.data import Data, load_data
from sl_client.data.own import call_function
from sl_common.errors import DataError
from sl_server.simulation.simulation import Simulation

X = torch.arange(40 * 4, dtype=torch.float32).reshape(40, 1, 2, 2) / 160
Y = torch.arange(40) % 4
NAMES = ["ant", "bee", "cat", "dog"]
OWN: dict[str, Callable[[object], object]] = {}


def own(root: object) -> object:
    """What the case under test returns."""
    return OWN["now"](root)


@pytest.fixture(autouse=True)
def _module(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a name that a configuration can say."""
    monkeypatch.setitem(sys.modules, "cutlayer_forms", sys.modules[__name__])


class Rows(Dataset):
    def __len__(self) -> int:
        return 40

    def __getitem__(self, number: int) -> object:
        return X[number].numpy(), int(Y[number])


class Broken(Rows):
    def __getitem__(self, number: int) -> object:
        raise OSError("gone.png")


class Unsized(Rows):
    def __len__(self) -> int:
        raise RuntimeError("not indexed yet")


class Exits(Rows):
    def __getitem__(self, number: int) -> object:
        sys.exit(0)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(Rows())


def both(x: object, y: object = Y, **more: object) -> Data:
    return Data(train=(x, y), test=(x, y), classes=4, **more)


def whole(found: object) -> Data:
    return Data(train=found, test=found, classes=4)


def read_only() -> np.ndarray:
    array = X.numpy().copy()
    array.flags.writeable = False
    return array


SAME: dict[str, Callable[[], Data]] = {
    "tensors": lambda: both(X),
    "arrays": lambda: both(X.numpy(), Y.numpy()),
    "lists": lambda: both(X.tolist(), Y.tolist()),
    "a list of tensors": lambda: both(list(X), list(Y)),
    "a list of arrays": lambda: both([x.numpy() for x in X], [np.int64(y) for y in Y]),
    "a list of two": lambda: Data(train=[X, Y], test=[X, Y], classes=4),
    "float64": lambda: both(X.double(), Y.to(torch.int32)),
    "float64 arrays": lambda: both(X.numpy().astype(np.float64), Y.numpy().astype(np.uint8)),
    "big endian": lambda: both(X.numpy().astype(">f4"), Y.numpy().astype(">i2")),
    "read-only": lambda: both(read_only()),
    "negative strides": lambda: both(X.numpy()[::-1].copy()[::-1], Y.numpy()[::-1].copy()[::-1]),
    "not contiguous": lambda: both(X.transpose(0, 3).contiguous().transpose(0, 3)),
    "with gradients": lambda: both(X.clone().requires_grad_()),
    "a column of labels": lambda: both(X, Y.reshape(-1, 1)),
    "one-hot": lambda: both(X, torch.nn.functional.one_hot(Y, 4)),
    "labels as floats": lambda: both(X, Y.double()),
    "objects": lambda: both(X, np.array(Y.tolist(), dtype=object)),
    "names": lambda: both(X, [NAMES[y] for y in Y]),
    "an array of names": lambda: both(X, np.array(NAMES)[Y.numpy()]),
    "names as bytes": lambda: both(X, np.array(NAMES, "S")[Y.numpy()]),
    "names as bytes and as text": lambda: Data(
        train=(X, [NAMES[y].encode() for y in Y]), test=(X, [NAMES[y] for y in Y]), classes=4
    ),
    "numbers as bytes": lambda: both(X, np.array([str(int(y)) for y in Y], "S")),
    "numbers as text": lambda: both(X, [str(int(y)) for y in Y]),
    "a Dataset": lambda: whole(Rows()),
    "a TensorDataset": lambda: whole(TensorDataset(X, Y)),
    "a DataLoader": lambda: whole(DataLoader(TensorDataset(X, Y), 8)),
    "a shuffling DataLoader": lambda: whole(DataLoader(Rows(), 8, shuffle=True)),
    "a function for the test set": lambda: Data(train=(X, Y), test=lambda _pick: (X, Y), classes=4),
    "numbers of numpy": lambda: Data(train=(X, Y), test=(X, Y), classes=np.int64(4), mean=0, std=np.float32(1)),
}

REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "None": (lambda: None, "returned a NoneType"),
    "no test set": (lambda: Data(train=(X, Y), test=None, classes=4), "data.test is a NoneType"),
    "a stream": (lambda: whole(Stream()), "data.train is a .*Stream, which can be read but once"),
    "a loader of a stream": (lambda: whole(DataLoader(Stream(), 4)), "can be read but once"),
    "a generator": (lambda: whole((x, 1) for x in X), "data.train is a generator"),
    "an iterator of labels": (lambda: both(X, iter(Y)), r"data.train.y is a .*iterator"),
    "a sampler": (lambda: whole(DataLoader(Rows(), 4, sampler=SubsetRandomSampler([1]))), "sampler or collate_fn"),
    "a broken Dataset": (lambda: whole(Broken()), "sample 0 raises OSError"),
    "a Dataset without a length": (lambda: whole(Unsized()), "__len__ raises RuntimeError"),
    "a Dataset that ends the process": (lambda: whole(Exits()), "sample 0 raises SystemExit"),
    "a call of sys.exit": (lambda: sys.exit(0), "raised SystemExit: 0"),
    "no memory": (lambda: both(torch.empty(40, 1, 2, 2, device="meta")), "data.train.x is a tensor of torch.float32"),
    "bytes that are no text": (lambda: both(X, np.array([b"\xff\xfe"] * 40)), "bytes that are not UTF-8"),
    "three": (lambda: Data(train=(X, Y, Y), test=(X, Y), classes=4), "tuple of 3, expected a pair"),
    "x alone": (lambda: Data(train=X, test=(X, Y), classes=4), "data.train is a Tensor, expected a pair"),
    "a dict": (lambda: Data(train={"x": X}, test=(X, Y), classes=4), "data.train is a dict"),
    "ragged": (lambda: both([[1.0], [1.0, 2.0]], [0, 1]), "data.train.x is a list that is no array"),
    "objects": (lambda: both(np.array([object()] * 40)), "data.train.x is an array of object"),
    "text": (lambda: both(["a"] * 40), r"data.train.x is an array of <U1"),
    "complex": (lambda: both(X.to(torch.complex64)), "data.train.x is a tensor of torch.complex64"),
    "complex arrays": (lambda: both(X.numpy().astype(complex)), "data.train.x is an array of complex128"),
    "sparse": (lambda: both(X.to_sparse()), "torch.sparse_coo"),
    "large whole numbers": (lambda: both((X * 1e10).long()), "float32 does not hold them"),
    "beyond float32": (lambda: both(X.double() * 1e300), "every value must be finite"),
    "NaN": (lambda: both(torch.where(X > 0.5, torch.nan, X)), "data.train.x runs from nan"),
    "negative labels": (lambda: both(X, Y - 1), "labels from -1 to 2, but 4 classes"),
    "labels beyond the classes": (lambda: both(X, Y + 1), "labels from 1 to 4, but 4 classes"),
    "halves": (lambda: both(X, Y + 0.5), "numbers that are not whole"),
    "NaN labels": (lambda: both(X, np.full(40, np.nan)), "numbers that are not whole"),
    "no one-hot": (lambda: both(X, torch.ones(40, 4)), "is not one-hot"),
    "too few names": (lambda: both(X, ["ant"] * 40), "1 names .*, the model has 4 classes"),
    "nothing": (lambda: both(X[:0], Y[:0]), "0 samples, but at least 1"),
    "an empty Dataset": (lambda: whole(TensorDataset(X[:0], Y[:0])), "0 samples, but at least 1"),
    "other lengths": (lambda: both(X, Y[:39]), r"data.train.y has shape \(39,\), but x has 40 samples"),
    "flat": (lambda: both(X.reshape(40, 4)), r"data.train.x has shape \(40, 4\)"),
    "other classes": (lambda: Data(train=(X, Y), test=(X, Y), classes=5), "data.classes = 5"),
    "no classes": (lambda: Data(train=(X, Y), test=(X, Y), classes=None), "data.classes is a NoneType"),
    "words for a mean": (lambda: both(X, mean="none"), "data.mean is a str"),
    "three means": (lambda: both(X, mean=[0.0, 0.0, 0.0]), "data.mean has 3 numbers"),
    "an error": (lambda: [][1], "raised IndexError: list index out of range .*test_forms.py, line"),
}


@pytest.fixture
def run_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], Simulation]:
    """A simulation on what a function returns, through the same loading as on a device."""

    def simulation(make: Callable[[], object]) -> Simulation:
        monkeypatch.setitem(OWN, "now", lambda _root: make())
        run = {"run__rounds": 1, "run__clients": 1, "client__wave": "{ steps = 2 }"}
        mine = {"data__name": '"cutlayer_forms:own"', "model__input": "[1, 2, 2]", "model__classes": 4}
        return Simulation(
            make_config("parallel", **run, **mine, data__partition='{ kind = "own" }', data__batch_size=8)
        )

    return simulation


@pytest.mark.parametrize("form", SAME)
def test_each_form_trains_the_same_bits(form: str, run_of: Callable[[Callable[[], object]], Simulation]) -> None:
    shas = set()
    for make in (SAME["tensors"], SAME[form]):
        simulation = run_of(make)
        simulation.run()
        assert simulation.coordinator.ended.finished
        shas.add(simulation.coordinator.weights_sha256())
    assert len(shas) == 1


@pytest.mark.parametrize("form", REFUSED)
def test_anything_else_is_refused_by_name(form: str, run_of: Callable[[Callable[[], object]], Simulation]) -> None:
    make, said = REFUSED[form]
    with pytest.raises(DataError, match=said) as refused:
        run_of(make).run()
    assert "data.name = 'cutlayer_forms:own'" in str(refused.value)


def test_a_shuffled_order_of_names_is_no_other_numbering(monkeypatch: pytest.MonkeyPatch) -> None:
    order = list(range(40))
    random.Random(0).shuffle(order)
    names = [NAMES[int(Y[number])] for number in order]
    monkeypatch.setitem(OWN, "now", lambda _root: Data(train=(X[order], names), test=(X[:4], NAMES), classes=4))
    data = load_data("cutlayer_forms:own", None, None)
    assert data.train[1].tolist() == Y[order].tolist()
    assert data.test[1].tolist() == [0, 1, 2, 3]


def test_our_own_errors_pass_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_root: object) -> object:
        raise DataError("this file is missing")

    monkeypatch.setitem(OWN, "now", fails)
    with pytest.raises(DataError, match=r"^this file is missing$"):
        call_function("cutlayer_forms:own", None, None, Data)
