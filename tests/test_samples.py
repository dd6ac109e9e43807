"""A person's files as samples: what they must hold, what is made of pictures, and how what is wrong is told."""

from __future__ import annotations

import gzip
import re
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sl_client.data import _BUILT_IN, Scale, data_scale, load_data
from sl_client.inference.files import batches, read_samples
from sl_common.config.known_data import KNOWN_DATA
from sl_common.errors import ConfigError, DataError
from sl_common.host.extras import how_to_install

GRAY, COLOUR = (1, 28, 28), (3, 32, 32)
RANDOM = np.random.Generator(np.random.PCG64(0))
PIXELS = RANDOM.integers(0, 256, (4, 28, 28), dtype=np.uint8)


def npy(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


def idx(path: Path, images: np.ndarray) -> Path:
    data = struct.pack(">IIII", 0x0803, *images.shape) + images.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def picture(path: Path, array: np.ndarray, mode: str) -> Path:
    Image.fromarray(array, mode).save(path)
    return path


# --- arrays


@pytest.mark.parametrize("shape", [(28, 28), (1, 28, 28)])
def test_one_sample(tmp_path: Path, shape: tuple[int, ...]) -> None:
    loaded = read_samples(npy(tmp_path / "one.npy", PIXELS[0].reshape(shape)), GRAY, of_bytes=True)
    assert (loaded.single, loaded.name(0)) == (True, f"{tmp_path}/one.npy")
    assert torch.equal(loaded.x, torch.from_numpy(PIXELS[:1]).view(1, *GRAY))


@pytest.mark.parametrize("shape", [(4, 28, 28), (4, 1, 28, 28)])
def test_many_samples(tmp_path: Path, shape: tuple[int, ...]) -> None:
    loaded = read_samples(npy(tmp_path / "many.npy", PIXELS.reshape(shape)), GRAY, of_bytes=True)
    assert (loaded.single, loaded.name(3)) == (False, f"{tmp_path}/many.npy[3]")
    assert torch.equal(loaded.x, torch.from_numpy(PIXELS).view(4, *GRAY))


def test_floats_mean_the_same_as_bytes(tmp_path: Path) -> None:
    scale = data_scale("fashion-mnist", None, ())
    as_bytes = read_samples(npy(tmp_path / "b.npy", PIXELS), GRAY, of_bytes=True)
    for dtype in (np.float32, np.float64):
        as_floats = read_samples(npy(tmp_path / "f.npy", PIXELS.astype(dtype) / dtype(255)), GRAY, of_bytes=True)
        assert as_floats.x.dtype == torch.float32
        torch.testing.assert_close(scale.normalise(as_floats.x), scale.normalise(as_bytes.x))


@pytest.mark.parametrize("name", ["t10k-images-idx3-ubyte", "images.gz"])
def test_idx_files(tmp_path: Path, name: str) -> None:
    loaded = read_samples(idx(tmp_path / name, PIXELS), GRAY, of_bytes=True)
    assert torch.equal(loaded.x, torch.from_numpy(PIXELS).view(4, *GRAY))


# --- pictures


def test_a_picture_of_the_models_size_is_taken_as_it_is(tmp_path: Path) -> None:
    gray = read_samples(picture(tmp_path / "g.png", PIXELS[0], "L"), GRAY, of_bytes=True)
    assert (gray.changed, gray.single) == ("", True)
    assert torch.equal(gray.x[0, 0], torch.from_numpy(PIXELS[0]))
    colours = RANDOM.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    rgb = read_samples(picture(tmp_path / "c.png", colours, "RGB"), COLOUR, of_bytes=True)
    assert (rgb.changed, torch.equal(rgb.x[0].permute(1, 2, 0), torch.from_numpy(colours))) == ("", True)


def test_any_other_picture_is_resized_and_says_so(tmp_path: Path) -> None:
    """Left half red, right half white, 80×40: luma 76 and 255 of ITU-R 601, each still its half of the square."""
    array = np.full((40, 80, 3), 255, np.uint8)
    array[:, :40] = (255, 0, 0)
    for name in ("wide.png", "wide.jpg"):
        loaded = read_samples(picture(tmp_path / name, array, "RGB"), GRAY, of_bytes=True)
        assert loaded.changed == "80×40 RGB to 28×28 grayscale"
        assert loaded.x.shape == (1, *GRAY)
        assert (loaded.x[0, 0, :, :12].float() - 76).abs().max() <= 3
        assert loaded.x[0, 0, :, 16:].min() >= 252


def test_what_is_transparent_is_black_and_what_is_turned_is_turned(tmp_path: Path) -> None:
    seen = np.full((28, 28, 4), 255, np.uint8)
    seen[:, 14:, 3] = 0
    x = read_samples(picture(tmp_path / "half.png", seen, "RGBA"), GRAY, of_bytes=True).x[0, 0]
    assert (x[:, :14] == 255).all()
    assert (x[:, 14:] == 0).all()
    turned = Image.fromarray(PIXELS[0], "L")
    exif = turned.getexif()
    exif[0x0112] = 3  # by 180°
    turned.save(tmp_path / "turned.png", exif=exif)
    x = read_samples(tmp_path / "turned.png", GRAY, of_bytes=True).x[0, 0]
    assert torch.equal(x, torch.from_numpy(PIXELS[0]).rot90(2))


def test_without_pillow_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = picture(tmp_path / "g.png", PIXELS[0], "L")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ConfigError, match=re.escape(f"pictures need the package Pillow: {how_to_install('images')}")):
        read_samples(path, GRAY, of_bytes=True)
    assert read_samples(npy(tmp_path / "x.npy", PIXELS), GRAY, of_bytes=True).x.shape == (4, *GRAY), "arrays do without"


# --- what is wrong


def bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    def written(name: str, data: bytes) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    png = picture(folder / "whole.png", PIXELS[0], "L").read_bytes()
    deep = folder / "deep.png"
    Image.fromarray(PIXELS[0].astype(np.uint16) * 257).save(deep)
    return {
        "absent": (folder / "absent.npy", "cannot be read: No such file"),
        "a folder": (folder, "cannot be read: Is a directory"),
        "text": (written("a.txt", b"hello"), "is neither PNG nor JPEG, neither .npy nor IDX: it starts with b'hell'"),
        "empty": (written("empty", b""), "neither PNG nor JPEG"),
        "a pickle": (npy(folder / "object.npy", np.array([{}], dtype=object)), "no NumPy array that can be read"),
        "half an array": (written("half.npy", (npy(folder / "x.npy", PIXELS)).read_bytes()[:-9]), "no NumPy array"),
        "integers": (npy(folder / "int.npy", PIXELS.astype(np.int64)), "holds int64, but must hold uint8"),
        "another shape": (
            npy(folder / "shape.npy", PIXELS[:, :27]),
            "has shape (4, 27, 28), but a sample of this run has (1, 28, 28) or (28, 28), and a list of them (N, …)",
        ),
        "no sample": (npy(folder / "none.npy", PIXELS[:0]), "has shape (0, 28, 28)"),
        "unscaled floats": (npy(folder / "255.npy", PIXELS.astype(np.float32)), "must be scaled to [0, 1], or uint8"),
        "NaN": (npy(folder / "nan.npy", np.full((28, 28), np.nan, np.float32)), "has numbers from nan to nan"),
        "labels": (written("labels", struct.pack(">II", 0x0801, 2) + b"ab"), "starts with 0x00000801"),
        "a large idx": (idx(folder / "big", np.zeros((2, 32, 32), np.uint8)), "has shape (2, 32, 32)"),
        "half a picture": (written("half.png", png[: len(png) // 2]), "no picture that can be read"),
        "16 bits": (deep, "is a picture in mode I;16, but 8 bits a channel are needed"),
    }


def test_what_is_wrong_names_the_file_and_both_values(tmp_path: Path) -> None:
    for what, (path, told) in bad_files(tmp_path).items():
        with pytest.raises(DataError) as caught:
            read_samples(path, GRAY, of_bytes=True)
        assert (told in str(caught.value), str(path) in str(caught.value)) == (True, True), f"{what}: {caught.value}"


def test_a_picture_for_a_model_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a sample of this run has shape \(64,\): give it as .npy"):
        read_samples(picture(tmp_path / "g.png", PIXELS[0], "L"), (64,), of_bytes=True)


def test_a_users_floats_may_be_any_finite_ones(tmp_path: Path) -> None:
    wide = PIXELS.astype(np.float32) - 100
    assert read_samples(npy(tmp_path / "wide.npy", wide), GRAY, of_bytes=False).x.min() < 0
    with pytest.raises(DataError, match="must be finite"):
        read_samples(npy(tmp_path / "inf.npy", np.full_like(wide, np.inf)), GRAY, of_bytes=False)


# --- batches and scales


def test_batches_run_over_the_borders_of_files(tmp_path: Path) -> None:
    files = [
        read_samples(npy(tmp_path / name, PIXELS[:count]), GRAY, of_bytes=True)
        for name, count in (("a.npy", 3), ("b.npy", 1), ("c.npy", 4))
    ]
    scale = Scale(mean=0.5, std=0.25)
    found = list(batches(files, 3, scale))
    assert [len(names) for names, _ in found] == [3, 3, 2]
    assert [name.rpartition("/")[2] for names, _ in found for name in names] == [
        *(f"a.npy[{n}]" for n in range(3)),
        "b.npy",
        *(f"c.npy[{n}]" for n in range(4)),
    ]
    whole = torch.cat([file.x for file in files])
    assert torch.equal(torch.cat([x for _, x in found]), scale.normalise(whole))


def test_a_scale_is_known_without_the_data() -> None:
    assert _BUILT_IN.keys() == KNOWN_DATA.keys()
    for name in KNOWN_DATA:
        assert data_scale(name, Path("/nowhere"), ()).std != 1.0
    digits = load_data("digits", None, ())
    x = digits.test[0][:5]
    assert torch.equal(data_scale("digits", None, ()).normalise(x), digits.normalise(x))
