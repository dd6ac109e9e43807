"""Data sets from real small files, then the loader's laws against a dumb twin."""

from __future__ import annotations

import gzip
import itertools
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn import LAW
from hypothesis import given
from hypothesis import strategies as st

from sl_client.data import Data, fashion_mnist, load_data
from sl_client.data.idx import read_idx, read_rows
from sl_client.data.loader import Loader, make_loader
from sl_common.batch import Batch
from sl_common.dealing import LastBatch
from sl_common.errors import ConfigError, DataError
from sl_common.partition import Dirichlet, Iid, OwnData, Shards
from sl_common.seeds import numpy_generator

Write = Callable[[Path, bytes], Path]


def idx(array: np.ndarray, kind: int = 0x08) -> bytes:
    return bytes([0, 0, kind, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def plain(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def gz(path: Path, content: bytes) -> Path:
    return plain(path.with_name(path.name + ".gz"), gzip.compress(content))


def images(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)


def labels(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.uint8) % 10


def write_fashion(folder: Path, write: Write = plain, train: int = 20, test: int = 5, train_labels: int = 20) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "train-images-idx3-ubyte", idx(images(train)))
    write(folder / "train-labels-idx1-ubyte", idx(labels(train_labels)))
    write(folder / "t10k-images-idx3-ubyte", idx(images(test)))
    write(folder / "t10k-labels-idx1-ubyte", idx(labels(test)))
    return folder


def numbered(train: int = 23, test: int = 11) -> Data:
    """Sample i is the number i, so a batch tells which samples are in it."""

    def pair(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.arange(count, dtype=torch.float32).reshape(count, 1), torch.arange(count) % 2

    return Data(train=pair(train), test=pair(test), classes=2)


def loader(data: Data | None = None, batch_size: int = 4, shard: int = 0, last: LastBatch = "keep") -> Loader:
    data = data or numbered()
    return Loader(data, np.arange(len(data.train[1])), batch_size, seed=3, shard=shard, last=last)


def rows(batches: itertools.chain[Batch] | list[Batch]) -> list[int]:
    return [int(value) for batch in batches for value in batch.x[:, 0]]


# --- IDX -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [plain, gz])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_idx_reads_what_was_written(tmp_path: Path, write: Write, count: int) -> None:
    assert np.array_equal(read_idx(write(tmp_path / "x", idx(images(count))), dims=3), images(count))


@pytest.mark.parametrize("write", [plain, gz])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the header is 8 bytes, the file holds 0"),
        (idx(labels(9))[:6], "the header is 8 bytes, the file holds 6"),
        (idx(labels(9))[:-1], r"promises 9 bytes \(9,\), the file holds 8"),
        (idx(labels(9)) + b"xy", r"2 bytes too many: the header promises 9 \(9,\), the file holds 11"),
        (idx(images(2)), "starts with 0x00000803, .* in 1 dimensions with 0x00000801"),
        (idx(labels(9), kind=0x0D), "starts with 0x00000d01, .* with 0x00000801"),
        (b"\x80\x04\x95\x10" + b"pickle" * 9, "starts with 0x80049510"),
        (b"\0\0\x08\x01\xff\xff\xff\xff" + b"x" * 9, "promises 4294967295 bytes .* holds 9"),
    ],
)
def test_idx_names_the_file_and_both_numbers(tmp_path: Path, write: Write, content: bytes, message: str) -> None:
    path = write(tmp_path / "bad-idx", content)
    with pytest.raises(DataError, match=message) as caught:
        read_idx(path, dims=1)
    assert str(path) in str(caught.value)


def test_idx_refuses_a_gzip_file_cut_anywhere(tmp_path: Path) -> None:
    whole = gzip.compress(idx(images(1)))
    for length in [*range(0, len(whole), 7), len(whole) - 1]:
        with pytest.raises(
            DataError, match=r"x\.gz: c"
        ):  # "cut short: …", or "cannot be read" if only the checksum is cut
            read_idx(plain(tmp_path / "x.gz", whole[:length]), dims=3)


def test_idx_refuses_a_gzip_file_that_is_none_or_is_damaged(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x\.gz: cannot be read"):
        read_idx(plain(tmp_path / "x.gz", idx(labels(9))), dims=1)
    damaged = bytearray(gzip.compress(idx(images(1))))
    damaged[-8] ^= 1  # the checksum
    with pytest.raises(DataError, match=r"x\.gz: cannot be read"):
        read_idx(plain(tmp_path / "x.gz", bytes(damaged)), dims=3)


# --- Built-in sets -------------------------------------------------------------------------------------------


def test_digits_are_those_of_scikit_learn() -> None:
    sklearn_datasets = pytest.importorskip("sklearn.datasets")
    source = sklearn_datasets.load_digits()
    data = load_data("digits", None, ())
    is_test = np.arange(1797) % 5 == 4
    for (x, y), chosen in ((data.train, ~is_test), (data.test, is_test)):
        assert np.array_equal(np.rint(x.numpy()[:, 0] * (16 / 255)), source.images[chosen])
        assert np.array_equal(y.numpy(), source.target[chosen])


def test_digits_pass_their_own_check_and_are_loaded_once() -> None:
    data = load_data("digits", None, ())
    data.check((1, 8, 8), 10)
    assert (len(data.train[1]), len(data.test[1]), int(data.train[0].max())) == (1438, 359, 255)
    x = data.normalise(data.train[0])
    assert abs(float(x.mean())) < 1e-3
    assert abs(float(x.std()) - 1) < 1e-3
    assert load_data("digits", Path("anywhere"), ()) is data


@pytest.mark.parametrize("write", [plain, gz])
@pytest.mark.parametrize("inside", [".", "fashion-mnist"])
@pytest.mark.parametrize("by_env", [False, True])
def test_fashion_mnist_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Write, inside: str, by_env: bool
) -> None:
    write_fashion(tmp_path / inside, write)
    monkeypatch.setenv("SL_DATA", str(tmp_path) if by_env else "/nowhere")
    data = load_data("fashion-mnist", None if by_env else tmp_path, ())
    data.check((1, 28, 28), 10)
    assert np.array_equal(data.train[0].numpy(), images(20)[:, None])
    assert np.array_equal(data.test[1].numpy(), labels(5))
    assert load_data("fashion-mnist", tmp_path, ()) is data


def test_fashion_mnist_takes_the_root_before_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SL_DATA", str(write_fashion(tmp_path / "env", train=10, train_labels=10)))
    root = write_fashion(tmp_path / "root")
    assert len(load_data("fashion-mnist", root, ()).train[1]) == 20
    assert len(load_data("fashion-mnist", None, ()).train[1]) == 10
    assert len(load_data("fashion-mnist", tmp_path / "empty", ()).train[1]) == 10
    assert fashion_mnist.places(root)[-1] == fashion_mnist.SYSTEM


def test_fashion_mnist_missing_says_where_it_looked_and_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        fashion_mnist.find([tmp_path / "one", tmp_path / "two"])
    for part in (str(tmp_path / "one"), str(tmp_path / "two"), "apt-get install dataset-fashion-mnist", "--data DIR"):
        assert part in str(caught.value)


def test_fashion_mnist_incomplete_names_the_missing_file(tmp_path: Path) -> None:
    (write_fashion(tmp_path) / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="no t10k-labels-idx1-ubyte"):
        load_data("fashion-mnist", tmp_path, ())


def test_fashion_mnist_refuses_other_than_one_label_an_image(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte has 20 images, but .*train-labels.* has 19 labels"):
        load_data("fashion-mnist", write_fashion(tmp_path, train_labels=19), ())


def test_the_real_fashion_mnist() -> None:
    if not fashion_mnist.SYSTEM.is_dir():
        pytest.skip(f"{fashion_mnist.SYSTEM} is missing: apt-get install dataset-fashion-mnist")
    data = load_data("fashion-mnist", fashion_mnist.SYSTEM, ())
    data.check((1, 28, 28), 10)
    assert torch.bincount(data.train[1]).tolist() == [6000] * 10
    assert torch.bincount(data.test[1]).tolist() == [1000] * 10
    x = data.train[0].float() / 255
    assert (round(float(x.mean()), 3), round(float(x.std()), 3)) == (data.mean, data.std)


def test_an_unknown_name_gets_the_closest_and_the_list() -> None:
    with pytest.raises(
        DataError, match=r"'fashon-mnist' is unknown; did you mean 'fashion-mnist'.*digits, fashion-mnist"
    ):
        load_data("fashon-mnist", None, ())
    with pytest.raises(DataError, match="'zzz' is unknown; known: cifar10, cifar100, digits, fashion-mnist"):
        load_data("zzz", None, ())


# --- The user's own set --------------------------------------------------------------------------------------

USER_CODE = """
import torch
from sl_client.data import Data

def good(root):
    pair = torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64)
    return Data(train=pair, test=pair, classes=len(root.name) if root else 1)

def wrong(root):
    return [1, 2]

def broken(root):
    return {}[root]
"""


@pytest.fixture
def user_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cutlayer_user_data.py").write_text(USER_CODE)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("user_code")
def test_own_code_is_called_with_the_root() -> None:
    assert load_data("cutlayer_user_data:good", None, ["cutlayer_user_data"]).classes == 1
    assert load_data("cutlayer_user_data:good", Path("/a/four"), None).classes == 4


@pytest.mark.usefixtures("user_code")
def test_own_code_is_refused_unless_allowed_and_a_data() -> None:
    with pytest.raises(ConfigError, match=r"data\.name = 'cutlayer_user_data:good'.*allow"):
        load_data("cutlayer_user_data:good", None, ())
    with pytest.raises(ConfigError, match=r"data\.name.*has no 'absent'"):
        load_data("cutlayer_user_data:absent", None, None)
    with pytest.raises(DataError, match=r"data\.name = 'cutlayer_user_data:wrong': returned a list, not a .*Data"):
        load_data("cutlayer_user_data:wrong", None, None)
    with pytest.raises(
        DataError, match=r"cutlayer_user_data:broken': raised KeyError: None \(.*line \d+: return \{\}\[root\]\)"
    ):
        load_data("cutlayer_user_data:broken", None, None)


# --- Data ----------------------------------------------------------------------------------------------------

X, Y = torch.zeros(6, 2, 4, 4), torch.arange(6) % 3
GOOD = Data(train=(X, Y), test=(X, Y), mean=(0.1, 0.2), std=(1.0, 2.0), classes=3)


def with_value(x: torch.Tensor, value: float) -> torch.Tensor:
    changed = x.clone()
    changed[-1, -1] = value
    return changed


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"train": (X.double(), Y)},
            r"data\.train\.x is torch\.float64, but must be a tensor of torch\.uint8 or torch\.float32",
        ),
        ({"test": (X.numpy(), Y)}, r"data\.test\.x is ndarray, but must be a tensor"),
        ({"train": (X, Y.int())}, r"data\.train\.y is torch\.int32, but must be a tensor of torch\.int64"),
        ({"train": (X[:, :1], Y)}, r"data\.train\.x has shape \(6, 1, 4, 4\), .* makes it \(N, 2, 4, 4\)"),
        ({"train": (torch.tensor(0.0), Y)}, r"data\.train\.x has shape \(\),"),
        ({"test": (X, Y[:5])}, r"data\.test\.y has shape \(5,\), but x has 6 samples"),
        ({"test": (X, Y[:, None])}, r"data\.test\.y has shape \(6, 1\)"),
        ({"train": (X[:0], Y[:0])}, r"data\.train\.x has 0 samples"),
        ({"test": (X[:0], Y[:0])}, r"data\.test\.x has 0 samples"),
        ({"train": (X, Y + 1)}, r"data\.train\.y has labels from 1 to 3, but 3 classes are labelled 0 to 2"),
        ({"test": (X, Y - 1)}, r"data\.test\.y has labels from -1 to 1"),
        ({"train": (with_value(X, float("nan")), Y)}, r"data\.train\.x runs from nan to nan"),
        ({"test": (with_value(X, float("-inf")), Y)}, r"data\.test\.x runs from -inf to 0\.0"),
        ({"classes": 4}, r"data\.classes = 4, but the model has 3"),
        ({"std": 0.0}, r"data\.std = 0\.0, but it must be > 0"),
        ({"std": (1.0, -1.0)}, r"data\.std = \(1\.0, -1\.0\), but it must be > 0"),
        ({"std": float("nan")}, r"data\.std = nan, but it must be finite"),
        ({"std": (1.0,)}, r"data\.std has 1 numbers, but .* has 2 channels"),
        ({"mean": (1.0, 2.0, 3.0)}, r"data\.mean has 3 numbers, but .* has 2 channels"),
        ({"mean": float("inf")}, r"data\.mean = inf"),
    ],
)
def test_check_names_the_field_and_both_values(changed: dict[str, object], message: str) -> None:
    GOOD.check((2, 4, 4), 3)
    with pytest.raises(DataError, match=message):
        replace(GOOD, **changed).check((2, 4, 4), 3)  # type: ignore[arg-type]


def test_normalise_scales_bytes_by_channel_and_leaves_its_argument() -> None:
    x = torch.full((3, 2, 4, 4), 255, dtype=torch.uint8)
    out = GOOD.normalise(x)
    assert (out.dtype, out.shape, out.is_contiguous()) == (torch.float32, x.shape, True)
    assert torch.allclose(out[:, 0], torch.tensor(0.9))
    assert torch.allclose(out[:, 1], torch.tensor(0.4))
    assert (x == 255).all()


def test_normalise_takes_floats_as_they_are() -> None:
    x = torch.tensor([[1.0, 5.0], [2.0, 6.0]])
    data = Data(train=(x, Y[:2]), test=(x, Y[:2]), mean=(1.0, 5.0), std=(1.0, 0.5), classes=3)
    data.check((2,), 3)
    assert data.normalise(x).tolist() == [[0.0, 0.0], [1.0, 2.0]]
    assert x.tolist() == [[1.0, 5.0], [2.0, 6.0]]
    assert replace(data, mean=0.0, std=1.0).normalise(x).data_ptr() != x.data_ptr()


# --- Loader --------------------------------------------------------------------------------------------------


def dumb(of: Loader, epochs: int) -> list[list[int]]:
    """The dumb twin: all epochs written down, one after the other."""
    batches = []
    for epoch in range(epochs):
        order = numpy_generator(of.seed, "shuffle", of.shard, epoch).permutation(of.indices).tolist()
        cut = [order[start : start + of.batch_size] for start in range(0, len(order), of.batch_size)]
        if of.last == "drop":
            cut = [batch for batch in cut if len(batch) == of.batch_size]
        if of.last == "merge" and len(cut) > 1 and len(cut[-1]) == 1 and of.batch_size > 1:
            cut[-2:] = [cut[-2] + cut[-1]]
        batches += cut
    return batches


@LAW
@given(
    samples=st.integers(1, 20),
    batch_size=st.integers(1, 8),
    last=st.sampled_from(["keep", "drop", "merge"]),
    first=st.integers(0, 30),
    steps=st.integers(0, 30),
)
def test_train_is_a_window_on_the_dumb_twin(
    samples: int, batch_size: int, last: LastBatch, first: int, steps: int
) -> None:
    batch_size = min(batch_size, samples) if last == "drop" else batch_size
    subject = loader(numbered(train=samples), batch_size, last=last)
    got = list(subject.train(first, steps))
    assert [batch.step for batch in got] == list(range(steps))
    assert [rows([batch]) for batch in got] == dumb(subject, epochs=61)[first : first + steps]
    assert [batch.y.tolist() for batch in got] == [[row % 2 for row in rows([batch])] for batch in got]


def test_two_calls_are_one_long_call() -> None:
    subject = loader()
    assert rows(itertools.chain(subject.train(0, 5), subject.train(5, 3))) == rows(list(subject.train(0, 8)))
    assert rows(list(loader().train(5, 3))) == rows(list(subject.train(5, 3)))  # nor does a restart matter


def test_every_epoch_visits_every_sample_once_in_another_order() -> None:
    subject = loader()
    epochs = [rows(list(subject.train(epoch * subject.batches, subject.batches))) for epoch in range(3)]
    assert all(sorted(epoch) == list(range(23)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert rows(list(loader(shard=1).train(0, 6))) != epochs[0]


def test_lengths() -> None:
    assert (loader().samples, loader().batches) == (23, 6)
    assert (loader(last="drop").samples, loader(last="drop").batches) == (20, 5)
    assert (loader(batch_size=23, last="drop").batches, loader(batch_size=99).batches) == (1, 1)
    merged = loader(batch_size=11, last="merge")
    assert (merged.samples, merged.batches, len(rows(list(merged.train(1, 1))))) == (23, 2, 12)


@LAW
@given(test=st.integers(1, 30), parts=st.integers(1, 9), samples=st.integers(0, 40), batch_size=st.integers(1, 7))
def test_evaluate_slices_are_disjoint_and_cover(test: int, parts: int, samples: int, batch_size: int) -> None:
    subject = loader(numbered(test=test), batch_size)
    slices = [list(subject.evaluate(part, parts, samples)) for part in range(parts)]
    seen = rows(itertools.chain(*slices))
    assert len(set(seen)) == len(seen) == (min(samples, test) or test)
    assert seen == sorted(seen)
    assert all([batch.step for batch in part] == list(range(len(part))) for part in slices)
    assert max(len(rows(part)) for part in slices) - min(len(rows(part)) for part in slices) <= 1
    assert all(1 <= len(batch.y) <= batch_size for part in slices for batch in part)


def test_evaluate_subset_is_the_same_for_every_shard() -> None:
    assert rows(list(loader().evaluate(0, 1, 5))) == rows(list(loader(shard=1, batch_size=2).evaluate(0, 1, 5)))


def test_batches_are_normalised_floats() -> None:
    subject = make_loader(load_data("digits", None, ()), Iid(), shards=10, shard=9, batch_size=32, seed=1)
    for batch in itertools.chain(subject.train(0, 2), subject.evaluate(1, 3, 0)):
        assert (batch.x.dtype, batch.x.shape[1:], batch.x.is_contiguous()) == (torch.float32, (1, 8, 8), True)
        assert (batch.y.dtype, batch.y.shape) == (torch.int64, (len(batch.x),))
        assert float(batch.x.min()) < 0 < float(batch.x.max()) < 5


def test_shards_of_one_set_share_nothing() -> None:
    data = numbered()
    dealt = [make_loader(data, Shards(), 3, shard, 4, seed=1).indices for shard in range(3)]
    assert sorted(np.concatenate(dealt).tolist()) == list(range(23))
    assert make_loader(data, OwnData(), 3, 2, 4, seed=1).samples == 23


@pytest.mark.parametrize("shard", [-1, 3])
def test_a_shard_out_of_range_is_refused(shard: int) -> None:
    with pytest.raises(ConfigError, match=f"shard {shard + 1}, but 3 shards are numbered 1 to 3"):
        make_loader(numbered(), Iid(), 3, shard, 4, seed=1)


def test_too_little_data_is_refused() -> None:
    with pytest.raises(ConfigError, match="shard 6 has 0 samples"):
        Loader(numbered(), np.arange(0), 4, seed=1, shard=5)
    with pytest.raises(ConfigError, match="shard 3 has 7 samples, fewer than batch_size = 8"):
        make_loader(numbered(), Iid(), 3, 2, 8, seed=1, last="drop")
    with pytest.raises(ConfigError, match="batch_size = 0"):
        Loader(numbered(), np.arange(3), 0, seed=1, shard=0)


# --- one client's samples alone


def test_picked_rows_are_those_of_the_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sl_client.data.idx._CHUNK", 3 * 28 * 28)  # blocks of three images
    path = gz(tmp_path / "x", idx(images(20)))
    for picked in ([], [0], [19], [2, 3, 7, 8, 9, 18], list(range(20))):
        held = np.array(picked, dtype=np.int64)
        found, count = read_rows(path, 3, held)
        assert count == 20
        assert np.array_equal(found, images(20)[held])


def test_a_file_cut_short_is_told_with_picked_rows_too(tmp_path: Path) -> None:
    path = plain(tmp_path / "x", idx(images(20))[:-1])
    with pytest.raises(DataError, match=r"promises 15680 bytes .* holds 15679"):
        read_rows(path, 3, np.array([1], dtype=np.int64))


def test_a_client_that_keeps_its_own_samples_alone_gets_the_same_batches() -> None:
    whole = load_data("digits", None, None)
    settings = {"shards": 3, "shard": 1, "batch_size": 32, "seed": 5, "augment": "crop_flip"}
    loader = make_loader(whole, Dirichlet(alpha=0.5), **settings)
    lean = make_loader(whole.only(loader.indices), Dirichlet(alpha=0.5), **settings)
    assert len(lean.data.train[1]) == len(loader.indices) < len(whole.train[1])
    assert (lean.samples, lean.batches) == (loader.samples, loader.batches)
    steps = 2 * loader.batches + 1
    for mine, theirs in zip(lean.train(3, steps), loader.train(3, steps), strict=True):
        assert torch.equal(mine.x, theirs.x)
        assert torch.equal(mine.y, theirs.y)
    for mine, theirs in zip(lean.evaluate(0, 2, 0), loader.evaluate(0, 2, 0), strict=True):
        assert torch.equal(mine.x, theirs.x)
