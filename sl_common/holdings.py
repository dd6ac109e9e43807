"""A client's report at Ready about its data and its build, to be compared with the others' and the server's. Pure.

Law: this finds honest mistakes, not lies; every number here is used only for a comparison, or as a bound on the inputs
that `predict` accepts.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from sl_common.bounded import MAX_COUNT
from sl_common.errors import WireError

MAX_MEANS = 128  # numbers that tell one set of floating point numbers from another
MAX_SCALES = 1 << 10  # numbers in a mean, or in a standard deviation
MAX_BUILDS = 16
MAX_LAYOUT = 8192  # characters of a build's layout, and of its modules' text; digests cover the rest
MAX_PROBE = 64
MAX_TYPE = 16  # characters in the name of a type
CLOSE = 1e-3  # relative to a list's largest number: difference that rounding on another device may make
_SHA256 = 32
_DIGEST = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """The stored numbers that a network is trained on; `mean` and `std` are those of the normalisation."""

    dtype: str  # "uint8" or "float32"
    low: float
    high: float
    mean: tuple[float, ...] = ()  # empty: not the same on all devices, or too many to report
    std: tuple[float, ...] = ()
    digest: str = ""  # after a run: of the set that was dealt

    def check(self) -> None:
        """Raise WireError unless these can be the numbers of a data set."""
        if not (self.dtype.isascii() and self.dtype.isalnum() and len(self.dtype) <= MAX_TYPE):
            raise WireError(f"inputs of type {self.dtype!r:.40}: must be a word of at most {MAX_TYPE} characters")
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise WireError(f"inputs from {self.low} to {self.high}: both must be finite, in this order")
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            _check_numbers(f"inputs.{name}", numbers, MAX_SCALES)
        if self.digest and not _DIGEST.fullmatch(self.digest):
            raise WireError(f"inputs.digest is {self.digest!r:.80}, must be 64 hexadecimal digits or empty")
        if any(number <= 0 for number in self.std):
            raise WireError(f"inputs.std has {min(self.std)}, every one must be > 0")

    def __str__(self) -> str:
        return f"{self.dtype} from {self.low:g} to {self.high:g}"


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSet:
    """The identity of a data set, dealt to clients or a client's own."""

    train: int  # samples, before they are dealt
    test: int
    train_sha256: bytes
    test_sha256: bytes
    means: tuple[float, ...] = ()  # of samples, where they are floating point numbers of a set that is dealt
    inputs: Inputs

    @property
    def digest(self) -> str:
        """The digest that `data.digest` pins, as 64 hexadecimal digits."""
        return hashlib.sha256(self.train_sha256 + self.test_sha256).hexdigest()

    def check(self) -> None:
        """Raise WireError unless this can be a data set."""
        if not (1 <= self.train <= MAX_COUNT and 1 <= self.test <= MAX_COUNT):
            raise WireError(
                f"a data set of {self.train} and {self.test} samples, 1 to {MAX_COUNT} of each are possible"
            )
        check_digest("data.train_sha256", self.train_sha256)
        check_digest("data.test_sha256", self.test_sha256)
        _check_numbers("data.means", self.means, MAX_MEANS)
        self.inputs.check()

    def __str__(self) -> str:
        return f"{self.train} training and {self.test} test samples, {self.inputs}, digest {self.digest}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Build:
    """One part of a network as one side built it."""

    part: str
    layout_sha256: bytes
    layout: str  # name, type and shape of each tensor of the state dict, a line each; cut at MAX_TEXT
    modules_sha256: bytes
    modules: str  # a layer a line; cut at MAX_TEXT
    probe: tuple[float, ...] = ()  # some of its outputs; empty if it could not compute any

    def check(self) -> None:
        """Raise WireError if a text or a list is too long."""
        check_digest("build.layout_sha256", self.layout_sha256)
        check_digest("build.modules_sha256", self.modules_sha256)
        for name, text in (("layout", self.layout), ("modules", self.modules)):
            if len(text) > MAX_LAYOUT:
                raise WireError(f"build.{name} has {len(text)} characters, at most {MAX_LAYOUT} are allowed")
        if len(self.probe) > MAX_PROBE:
            raise WireError(f"build.probe has {len(self.probe)} numbers, at most {MAX_PROBE} are allowed")


def check_digest(name: str, sha256: bytes) -> None:
    """Raise WireError unless it is a SHA-256 digest."""
    if len(sha256) != _SHA256:
        raise WireError(f"{name} has {len(sha256)} bytes, must have {_SHA256}")


def _check_numbers(name: str, numbers: Sequence[float], most: int) -> None:
    if len(numbers) > most:
        raise WireError(f"{name} has {len(numbers)} numbers, at most {most} are allowed")
    for number in numbers:
        if not math.isfinite(number):
            raise WireError(f"{name} has {number}, every number must be finite")


def apart(these: Sequence[float], those: Sequence[float], close: float = CLOSE) -> tuple[float, float] | None:
    """Return the first two numbers that differ by more than rounding, or None if there are none.

    Returns (nan, nan) for lists of different lengths. Numbers that are not finite must be so in the same places, in the
    same way.
    """
    if len(these) != len(those):
        return math.nan, math.nan
    largest = max((abs(number) for number in those if math.isfinite(number)), default=0.0)
    for one, other in zip(these, those, strict=True):
        if math.isfinite(one) and math.isfinite(other):
            if abs(one - other) > close * largest:
                return one, other
        elif one != other and not (math.isnan(one) and math.isnan(other)):
            return one, other
    return None
