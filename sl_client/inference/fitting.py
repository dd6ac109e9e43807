"""Conversion of a person's samples to the units of training.

Samples in other units would get wrong classes without any error, so they are refused.

Law: only numbers with one possible meaning are converted. The range of a picture's bytes is 0 to 255, whatever it
shows. Of other numbers only the range is known; if it does not fit, the text gives both ranges.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sl_client.data import Scale
from sl_common.errors import DataError
from sl_common.holdings import Inputs

BYTE = 255
_LEAST_BYTES = 128  # a set of floats whose largest number is from here to BYTE holds the bytes of pictures
_LEAST_SCALED = 0.5  # one whose largest number is from here to 1 holds bytes scaled to [0, 1]
_OTHER_UNITS = 64  # numbers so many times smaller than in training are in other units, not a dark picture
_FAR = 4.0  # numbers that lie outside training's range by more than so many widths of it are refused
_BEYOND = 0.25  # and by more than so many are doubtful
AS_IS = "give them in training's units, or --as-is to take the numbers as they are"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Fitted:
    """Samples in the units that normalisation expects."""

    x: Tensor  # uint8, which normalisation scales to [0, 1], or float32
    how: str = ""  # how they were converted
    doubt: str = ""  # what a person should check


def fit(what: str, x: Tensor, inputs: Inputs | None, *, picture: bool) -> Fitted:
    """Convert `x` as stored, uint8 or float32, to the units of `inputs`. Raises DataError that states both ranges.

    `what` names the samples in texts; `picture`: the range of their bytes is 0 to 255 for certain.
    """
    if inputs is None or not x.numel():
        return Fitted(x=x)
    low, high = (float(bound) for bound in x.aminmax())
    held = f"{what}: holds {str(x.dtype).removeprefix('torch.')} from {low:g} to {high:g}"
    wanted = f"this run was trained on {inputs}"
    if x.dtype == torch.uint8 and inputs.dtype != "uint8":
        return _bytes_for_floats(x, high, inputs, held, wanted, picture=picture)
    if x.dtype == torch.uint8 and inputs.high >= _LEAST_BYTES:
        return Fitted(x=x, doubt=_binary(high, inputs, held, wanted, picture=picture))
    if x.dtype == torch.uint8 and picture:
        low, high = 0.0, float(BYTE)
    elif x.dtype != torch.uint8 and inputs.dtype == "uint8":
        low, high = BYTE * low, BYTE * high  # floating point numbers are taken as scaled to [0, 1]
    return Fitted(x=x, doubt=compare_ranges(low, high, inputs, held, wanted))


def _binary(high: float, inputs: Inputs, held: str, wanted: str, *, picture: bool) -> str:
    """Return a doubt about bytes of 0 and 1 only: numbers scaled to [0, 1] that were then rounded look like this."""
    if picture or not 0 < high <= 1 or inputs.high <= 1:
        return ""
    return f"{held}, {wanted}: were they scaled to [0, 1] before they became whole numbers?"


def _bytes_for_floats(x: Tensor, high: float, inputs: Inputs, held: str, wanted: str, *, picture: bool) -> Fitted:
    if inputs.low >= 0 and _LEAST_BYTES <= inputs.high <= BYTE:
        doubt = _binary(high, inputs, held, wanted, picture=picture)
        return Fitted(x=x.float(), how="taken as numbers from 0 to 255, as in training", doubt=doubt)
    if inputs.low >= 0 and _LEAST_SCALED < inputs.high <= 1:
        if not picture and 0 < high <= 1:
            raise DataError(f"{held}, {wanted}: whether 1 is white or nearly black cannot be told; {AS_IS}")
        return Fitted(x=x, how="scaled from 0 to 255 to [0, 1], as in training")
    if high == 0 and inputs.low >= 0:
        return Fitted(x=x.float())
    if not picture and high <= inputs.high:
        return Fitted(x=x.float(), doubt=compare_ranges(float(x.min()), high, inputs, held, wanted))
    raise DataError(f"{held}, {wanted}, and how bytes become that cannot be told; {AS_IS}")


def compare_ranges(low: float, high: float, inputs: Inputs, held: str, wanted: str) -> str:
    """Return a doubt about numbers from `low` to `high` where training had the range of `inputs`.

    Return "" if both may be in the same units. Raises DataError if they cannot be.
    """
    width = inputs.high - inputs.low or abs(inputs.high) or 1.0
    largest, known = max(abs(low), abs(high)), max(abs(inputs.low), abs(inputs.high))
    if max(high - inputs.high, inputs.low - low) > _FAR * width:
        raise DataError(f"{held}, {wanted}: those are other units; {AS_IS}")
    if 0 < largest * _OTHER_UNITS < known:
        raise DataError(f"{held}, {wanted}: those are other units, or nearly nothing; {AS_IS}")
    if max(high - inputs.high, inputs.low - low) > _BEYOND * width:
        return f"{held}, {wanted}: are they in the same units?"
    if inputs.low < -_BEYOND / 5 * width and low >= 0 and low < high:
        return f"{held}, {wanted}: none is negative here; were they normalised as those were?"
    return ""


def check_test_set(x: Tensor, inputs: Inputs | None) -> str:
    """Return a doubt about this device's copy of the test set, compared with the numbers of training.

    Raises DataError.
    """
    if inputs is None or not x.numel():
        return ""
    scale = BYTE if inputs.dtype == "uint8" else 1
    trained = Inputs(dtype=inputs.dtype, low=inputs.low / scale, high=inputs.high / scale)
    low, high = (float(bound) / (BYTE if x.dtype == torch.uint8 else 1) for bound in x.aminmax())
    held = (
        f"the test set here holds {str(x.dtype).removeprefix('torch.')} from {low:g} to {high:g} before normalisation"
    )
    return compare_ranges(low, high, trained, held, f"this run was trained on {trained}")


def scale_in(inputs: Inputs | None) -> Scale | None:
    """Return the scale by which training normalised, if the run states it."""
    if inputs is None or not inputs.mean or not inputs.std:
        return None
    return Scale(mean=_one_or_many(inputs.mean), std=_one_or_many(inputs.std))


def _one_or_many(numbers: tuple[float, ...]) -> float | tuple[float, ...]:
    return numbers[0] if len(numbers) == 1 else numbers
