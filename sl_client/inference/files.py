"""A person's files as samples of a run: arrays, IDX files and pictures, in the form in which a data set stores them.

Arrays and IDX files must have the model's shape. A picture is converted to grayscale or RGB for a model of 1 or 3
channels, and resized to the model's height and width without keeping its proportions; transparent pixels become black.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sl_client.data import Scale
from sl_client.data.idx import read_idx
from sl_common.errors import ConfigError, DataError
from sl_common.host.extras import how_to_install

_NPY, _IDX, _GZIP, _PNG, _JPEG = b"\x93NUMPY", b"\x00\x00\x08", b"\x1f\x8b", b"\x89PNG", b"\xff\xd8\xff"
_COLOURS = {1: ("L", "grayscale"), 3: ("RGB", "RGB")}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LoadedFile:
    """The samples of one file."""

    file: str
    x: Tensor  # (N, *input) uint8, or float32 scaled to [0, 1] where the data set is of bytes
    single: bool  # the file is one sample, not a list of samples
    changed: str = ""  # how a picture was changed
    picture: bool = False  # the range of its bytes is 0 to 255 for certain

    def name(self, index: int) -> str:
        """Return the name of a sample in predictions."""
        return self.file if self.single else f"{self.file}[{index}]"


def read_samples(path: Path, input: tuple[int, ...], *, of_bytes: bool) -> LoadedFile:
    """Read the samples of one file. `of_bytes`: the run's data set holds uint8, so that floats must lie in [0, 1].

    Raises DataError that names the file and both values, ConfigError if Pillow is missing for a picture.
    """
    start = _start(path)
    if start.startswith(_NPY):
        x = _array(path)
    elif start.startswith((_IDX, _GZIP)):
        x = torch.from_numpy(read_idx(path, dims=3))
    elif start.startswith((_PNG, _JPEG)):
        x, changed = _picture(path, input)
        return LoadedFile(file=str(path), x=x, single=True, changed=changed, picture=True)
    else:
        raise DataError(f"{path}: is neither PNG nor JPEG, neither .npy nor IDX: it starts with {start[:4]!r}")
    return _shaped(path, x, input, of_bytes=of_bytes)


def _start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(8)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def _array(path: Path) -> Tensor:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)  # mapped: a header may announce terabytes
    except Exception as error:  # a damaged header raises many kinds of errors in NumPy
        raise DataError(f"{path}: no NumPy array that can be read: {str(error)[:200]}") from error
    if array.dtype not in (np.uint8, np.float32, np.float64):
        raise DataError(f"{path}: holds {array.dtype}, but must hold uint8, float32 or float64")
    return torch.from_numpy(np.array(array, np.uint8 if array.dtype == np.uint8 else np.float32, order="C"))


def _shaped(path: Path, x: Tensor, input: tuple[int, ...], *, of_bytes: bool) -> LoadedFile:
    """Check an array of shape (*input) or (N, *input), of which a single channel may be left out, and its numbers."""
    found, single = tuple(x.shape), False
    shapes = [input, *([input[1:]] if input[0] == 1 and len(input) > 1 else [])]
    if found in shapes:
        x, single = x.reshape(1, *input), True
    elif found[1:] in shapes and found[0] > 0:
        x = x.reshape(-1, *input)
    else:
        wanted = " or ".join(str(shape) for shape in shapes)
        raise DataError(f"{path}: has shape {found}, but a sample of this run has {wanted}, and a list of them (N, …)")
    if x.is_floating_point():
        low, high = (bound.item() for bound in x.aminmax())
        if not (low >= 0 and high <= 1 if of_bytes else torch.isfinite(x).all()):
            wanted = "scaled to [0, 1], or uint8 from 0 to 255" if of_bytes else "finite"
            raise DataError(f"{path}: has numbers from {low:g} to {high:g}, but they must be {wanted}")
    return LoadedFile(file=str(path), x=x, single=single)


def _picture(path: Path, input: tuple[int, ...]) -> tuple[Tensor, str]:
    """Return the picture as (1, C, H, W) uint8, and how it was changed."""
    try:
        from PIL import Image, ImageOps
    except ModuleNotFoundError as error:
        raise ConfigError(f"{path}: pictures need the package Pillow: {how_to_install('images')}") from error
    if len(input) != 3 or input[0] not in _COLOURS:
        raise DataError(f"{path}: is a picture, but a sample of this run has shape {input}: give it as .npy")
    mode, colour = _COLOURS[input[0]]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=("PNG", "JPEG")) as found:
                was, picture = f"{found.width}×{found.height} {found.mode}", _flat(ImageOps.exif_transpose(found), path)
    except (
        OSError,
        ValueError,
        SyntaxError,
        MemoryError,  # a damaged picture may announce a huge size
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:
        raise DataError(
            f"{path}: no picture that can be read: {str(error) or 'it needs more memory than there is'}"
        ) from error
    height, width = input[1:]
    same = picture.mode == mode and picture.size == (width, height)
    picture = picture.convert(mode).resize((width, height), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(picture, dtype=np.uint8)).view(height, width, -1).permute(2, 0, 1)
    return pixels.contiguous()[None], "" if same else f"{was} to {width}×{height} {colour}"


def _flat(picture: Any, path: Path) -> Any:
    """Return the picture on a black background, without transparency."""
    from PIL import Image

    if picture.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"):
        raise DataError(f"{path}: is a picture in mode {picture.mode}, but 8 bits a channel are needed")
    if "A" not in picture.mode and "transparency" not in picture.info:
        return picture
    seen = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", seen.size, (0, 0, 0, 255)), seen).convert("RGB")


def batches(files: Iterable[LoadedFile], size: int, scale: Scale) -> Iterator[tuple[list[str], Tensor]]:
    """Yield names and normalised samples x (B, *input), `size` of them except in the last batch.

    A batch may mix files.
    """
    names: list[str] = []
    pieces: list[Tensor] = []
    for file in files:
        done = 0
        while done < len(file.x):
            piece = file.x[done : done + size - len(names)]
            names += [file.name(done + n) for n in range(len(piece))]
            pieces.append(scale.normalise(piece))
            done += len(piece)
            if len(names) == size:
                yield names, torch.cat(pieces)
                names, pieces = [], []
    if names:
        yield names, torch.cat(pieces)
