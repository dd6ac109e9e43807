"""CIFAR in its standard files, small ones in the same format, and the augmentation that the papers train it with."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from world import make_config

from sl_client.data import Data, load_data
from sl_client.data.cifar import CIFAR10, CIFAR100, Kind, read
from sl_client.data.loader import Loader
from sl_common.errors import DataError
from sl_common.seeds import numpy_generator

KINDS = {kind.name: kind for kind in (CIFAR10, CIFAR100)}


def numbers(kind: Kind, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 3072), np.uint8), rng.integers(0, kind.classes, count)


def write(kind: Kind, folder: Path, *, binary: bool, count: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """All files of a set; what its training files hold, in order."""
    folder.mkdir(parents=True, exist_ok=True)
    held = []
    names = kind.binary if binary else kind.python
    for seed, name in enumerate([*names[0], *names[1]]):
        images, labels = numbers(kind, count, seed)
        if name in names[0]:
            held.append((images, labels))
        if binary:
            coarse = [np.full(count, 7)] * (kind.label_bytes - 1)
            rows = np.column_stack([*coarse, labels, images]).astype(np.uint8)
            (folder / name).write_bytes(rows.tobytes())
        else:
            batch = {b"data": images, kind.key: labels.tolist(), b"filenames": [b"x.png"] * count}
            (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    return np.concatenate([i for i, _ in held]), np.concatenate([n for _, n in held])


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("inside", [True, False])
def test_both_versions_are_found_and_read(name: str, binary: bool, inside: bool, tmp_path: Path) -> None:
    kind = KINDS[name]
    folder = tmp_path / kind.folders[0 if binary else 1] if inside else tmp_path
    images, labels = write(kind, folder, binary=binary)
    data = load_data(name, tmp_path, ())
    data.check((3, 32, 32), kind.classes)
    assert torch.equal(data.train[0], torch.from_numpy(images).view(-1, 3, 32, 32))
    assert data.train[1].tolist() == labels.tolist()
    assert len(data.test[1]) == 3
    batch = data.normalise(data.train[0][:1])
    assert batch[0, 2, 0, 0] == pytest.approx((images[0, 2048] / 255 - kind.mean[2]) / kind.std[2], abs=1e-5)


def test_files_that_are_missing_are_told_with_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"cifar10.*data_batch_1.bin.*{tmp_path}"):
        read(CIFAR10, tmp_path)
    write(CIFAR10, tmp_path, binary=True)
    (tmp_path / "data_batch_3.bin").unlink()
    with pytest.raises(DataError, match=r"data_batch_3.bin: cannot be read"):
        read(CIFAR10, tmp_path)


DAMAGE = {
    "truncated": (lambda data: data[:-1], "has 9218 bytes, which is not a whole number of records of 3073"),
    "empty": (lambda _: b"", "has 0 bytes"),
    "a label": (lambda data: b"\x0b" + data[1:], "has labels from .* to 11, cifar10 has 10 classes"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damaged_binary_files_are_told(what: str, tmp_path: Path) -> None:
    write(CIFAR10, tmp_path, binary=True)
    change, text = DAMAGE[what]
    path = tmp_path / "data_batch_2.bin"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=rf"data_batch_2.bin: {text}"):
        read(CIFAR10, tmp_path)


class Evil:
    """What a pickle may ask for."""

    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("evil"),))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (pickle.dumps(Evil()), "which no batch of CIFAR needs"),
        (pickle.dumps({b"data": np.zeros((2, 3072), np.uint8)}, protocol=2), "is no batch of cifar10"),
        (
            pickle.dumps({b"data": np.zeros((2, 9), np.uint8), b"labels": [0, 1]}, protocol=2),
            r"expected uint8 \(N, 3072\)",
        ),
        (
            pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]}, protocol=2),
            r"2 images, but labels \(1,\)",
        ),
        (b"not a pickle", "is no batch of cifar10"),
    ],
)
def test_a_hostile_or_damaged_pickle_runs_nothing(content: bytes, text: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(CIFAR10, tmp_path, binary=False)
    (tmp_path / "data_batch_1").write_bytes(content)
    with pytest.raises(DataError, match=text):
        read(CIFAR10, tmp_path)
    assert not (tmp_path / "evil").exists()


# --- augmentation


def loader(augment: str, seed: int = 0, shard: int = 0) -> Loader:
    x = torch.arange(6 * 3 * 8 * 8).remainder(251).to(torch.uint8).view(6, 3, 8, 8)
    data = Data(train=(x, torch.arange(6)), test=(x, torch.arange(6)), classes=6)
    return Loader(data, np.arange(6), 3, seed, shard, augment=augment)


def test_each_image_is_a_crop_of_the_padded_one_flipped_or_not() -> None:
    """A brute-force search finds where it was cut out; over epochs, places differ."""
    own, found = loader("crop_flip"), set()
    for epoch in range(12):
        for batch in own.train(epoch * 2, 2):
            for image, label in zip(batch.stored, batch.y, strict=True):
                padded = torch.nn.functional.pad(own.data.train[0][label], (4, 4, 4, 4))
                crops = {
                    (top, left, flip): padded[:, top : top + 8, left : left + 8].flip([-1] * flip)
                    for top in range(9)
                    for left in range(9)
                    for flip in (False, True)
                }
                places = [place for place, crop in crops.items() if torch.equal(image, crop)]
                assert places
                found.add(places[0])
    assert len(found) > 30
    assert {flip for _, _, flip in found} == {False, True}


def test_augmentation_is_seeded_and_leaves_order_and_evaluation_alone() -> None:
    plain, own, again, other = loader("none"), loader("crop_flip"), loader("crop_flip"), loader("crop_flip", seed=1)
    batches = [list(each.train(0, 4)) for each in (plain, own, again)]
    assert [b.y.tolist() for b in batches[0]] == [b.y.tolist() for b in batches[1]]
    assert all(torch.equal(a.x, b.x) for a, b in zip(batches[1], batches[2], strict=True))
    assert not torch.equal(batches[1][0].x, batches[0][0].x)
    assert not torch.equal(next(other.train(0, 1)).x, batches[1][0].x)
    assert torch.equal(next(own.evaluate(0, 1, 0)).x, next(plain.evaluate(0, 1, 0)).x)
    assert numpy_generator(0, "augment", 0, 3).integers(9) == numpy_generator(0, "augment", 0, 3).integers(9)


def test_the_configuration_turns_it_on() -> None:
    assert make_config("parallel").data.augment == "none"
    assert make_config("parallel", data__augment='"crop_flip"').data.augment == "crop_flip"


@pytest.mark.parametrize("binary", [True, False])
def test_one_clients_images_are_picked_over_all_files(binary: bool, tmp_path: Path) -> None:
    write(CIFAR10, tmp_path, binary=binary)
    whole = load_data("cifar10", tmp_path, None)
    held = np.array([0, 4, 5, 11], dtype=np.int64)
    seen: list[np.ndarray] = []
    mine = load_data("cifar10", tmp_path, None, lambda y: (seen.append(y), held)[1])
    assert np.array_equal(seen[0], whole.train[1].numpy())
    assert torch.equal(mine.train[0], whole.train[0][torch.from_numpy(held)])
    assert torch.equal(mine.train[1], whole.train[1][torch.from_numpy(held)])
    assert callable(mine.test)
    (x, y), chosen = mine.tests(lambda y: np.arange(1, len(y)))
    assert torch.equal(x[chosen], whole.test[0][1:])
    assert torch.equal(y[chosen], whole.test[1][1:])
    assert mine.held is held
