"""Tensor codecs done the dumb way, in exact arithmetic, for the fast ones to be compared with.

Law: nothing here imports the product, numpy or torch. A float is taken for the exact rational it is, every choice is
made by trying all the possibilities, and non-finite input is the caller's mistake. Codes, positions and values only:
no byte format but `pack_bits`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import permutations
from typing import Literal

Ocp = Literal["e4m3", "e5m2"]
TWO = Fraction(2)

# --- 8-bit floating point (async_fp8.md c, d, g 9-11)


def float8_value(code: int, exponent_bits: int, bias: int) -> Fraction:
    """The value of one code of the all-finite family with one sign bit."""
    steps = 1 << (7 - exponent_bits)  # 2^m
    sign = -1 if code >= 128 else 1
    exponent, mantissa = divmod(code % 128, steps)
    fraction = Fraction(mantissa, steps)
    if exponent == 0:
        return sign * TWO ** (1 - bias) * fraction
    return sign * TWO ** (exponent - bias) * (1 + fraction)


def float8_values(exponent_bits: int, bias: int) -> list[Fraction]:
    """The values of the 256 codes, every one finite; code 128 is -0, here 0."""
    return [float8_value(code, exponent_bits, bias) for code in range(256)]


def ocp_values(name: Ocp) -> list[Fraction | None]:
    """The values of the 256 codes of an OCP format, None for NaN and infinities."""
    exponent_bits, bias, first_special = {"e4m3": (4, 7, 0b1111_111), "e5m2": (5, 15, 0b11111_00)}[name]
    finite = float8_values(exponent_bits, bias)
    return [finite[code] if code % 128 < first_special else None for code in range(256)]


def nearest(x: Fraction, values: Sequence[Fraction | None]) -> int:
    """The code of the value nearest to x, of two equally near the even code, of two zeros the code 0."""
    best: tuple[Fraction, int, int] | None = None
    for code, value in enumerate(values):
        if value is None or (value == 0 and code != 0):
            continue
        candidate = (abs(x - value), code % 2, code)
        if best is None or candidate < best:
            best = candidate
    assert best is not None
    return best[2]


def widest_bias(exponent_bits: int, amax: Fraction) -> int:
    """The largest bias at which the largest value is still at least amax; there is none for amax 0 (ValueError)."""
    if amax <= 0:
        raise ValueError(f"amax {amax}: every bias covers it")
    at_bias_0 = max(float8_values(exponent_bits, 0))
    bias = 0
    while at_bias_0 / TWO**bias < amax:
        bias -= 1
    while at_bias_0 / TWO ** (bias + 1) >= amax:
        bias += 1
    return bias


def squared_error(sample: list[float], exponent_bits: int, bias: int) -> Fraction:
    """The sum over the sample of (x - dequantised quantised x)^2."""
    values = float8_values(exponent_bits, bias)
    total = Fraction(0)
    for x in sample:
        total += (Fraction(x) - values[nearest(Fraction(x), values)]) ** 2
    return total


def searched(sample: list[float], amax: float) -> tuple[int, int]:
    """The (exponent bits, bias) of least squared error, of equals the first in the order tried here."""
    candidates = []
    for exponent_bits in (5, 4, 3, 2):
        widest = widest_bias(exponent_bits, Fraction(amax))
        candidates += [(exponent_bits, bias) for bias in (widest, widest - 1, widest + 1)]
    errors = [squared_error(sample, *candidate) for candidate in candidates]
    return candidates[errors.index(min(errors))]


def ocp_scale(name: Ocp, amax: Fraction) -> int:
    """The largest s at which amax * 2^s is still at most the format's largest value; 0 for amax 0."""
    top = max(value for value in ocp_values(name) if value is not None)
    scale = 0
    if amax == 0:
        return scale
    while amax * TWO**scale > top:
        scale -= 1
    while amax * TWO ** (scale + 1) <= top:
        scale += 1
    return scale


def ocp(xs: list[float], name: Ocp) -> list[Fraction]:
    """The tensor scaled by `ocp_scale` of its largest magnitude, quantised, dequantised and scaled back."""
    values = ocp_values(name)
    scale = TWO ** ocp_scale(name, max((abs(Fraction(x)) for x in xs), default=Fraction(0)))
    result = []
    for x in xs:
        value = values[nearest(Fraction(x) * scale, values)]
        assert value is not None
        result.append(value / scale)
    return result


# --- sparsification (ms.md b, f, g; baselines.md 7, 8)


def kept(d: int, r: str) -> int:
    """How many of d values are kept at the sparsity ratio r, a decimal string: d - ceil(r d), at least 1 of any."""
    return 0 if d == 0 else max(1, d - math.ceil(Fraction(r) * d))


def largest(xs: Sequence[float], k: int) -> list[int]:
    """The sorted positions of the k largest, of equals the lowest positions first."""
    return sorted(sorted(range(len(xs)), key=lambda i: (-xs[i], i))[:k])


def mask(
    xs: list[float], k: int, bits: int, *, signed: bool, rounding: Literal["round", "floor"]
) -> tuple[list[int], list[float], list[Fraction]]:
    """MS: the codes, the k kept values (magnitudes if signed) in position order and the reconstruction.

    A filtered value below 0, or any where the smallest kept value is not above 0, gets the code 0.
    """
    seen = [abs(x) for x in xs] if signed else xs
    chosen = largest(seen, k)
    values = [seen[i] for i in chosen]
    smallest = Fraction(min(values, default=0.0))
    top = 2**bits - 1
    codes, decoded = [], []
    for i, x in enumerate(seen):
        if i in chosen:
            code, magnitude = top, Fraction(x)
        else:
            code = 0 if x < 0 or smallest <= 0 else filtered(Fraction(x) / smallest * top, top, rounding)
            magnitude = code * smallest / top
        codes.append(code)
        decoded.append(-magnitude if signed and xs[i] < 0 else magnitude)
    return codes, values, decoded


def filtered(level: Fraction, top: int, rounding: Literal["round", "floor"]) -> int:
    """The code of a filtered value: its level rounded half to even, or down, and kept off the top code."""
    return min(round(level) if rounding == "round" else math.floor(level), top - 1)


def topk(xs: list[float], k: int, key: Literal["signed", "abs"]) -> list[float]:
    """Top-k: the k largest, or largest in magnitude, as they are, and 0 elsewhere."""
    chosen = largest([abs(x) for x in xs] if key == "abs" else xs, k)
    return [x if i in chosen else 0.0 for i, x in enumerate(xs)]


def randtopk_inclusion(d: int, k: int, alpha: Fraction) -> list[Fraction]:
    """The chance of each of d positions, the k top ones first, to be among the k that RandTop-k draws.

    All draws in order are enumerated, so d is small; alpha 1 needs d - k >= k (ValueError).
    """
    if k in (0, d):
        return [Fraction(int(k == d))] * d
    if alpha == 1 and d - k < k:
        raise ValueError(f"d={d}, k={k}: alpha 1 leaves fewer than k positions to draw")
    weights = [(1 - alpha) / k] * k + [alpha / (d - k)] * (d - k)
    chances = [Fraction(0)] * d
    for draw in permutations([i for i in range(d) if weights[i] > 0], k):
        chance, left = Fraction(1), Fraction(1)
        for i in draw:
            chance *= weights[i] / left
            left -= weights[i]
        for i in draw:
            chances[i] += chance
    return chances


# --- uniform quantisation (baselines.md 9)


def uniform(xs: list[float], bits: int, point: Literal["ends", "middle"]) -> tuple[list[int], list[Fraction]]:
    """The codes and the reconstruction by levels that include both ends, or by the middles of equal bins."""
    exact = [Fraction(x) for x in xs]
    if len(set(exact)) <= 1:
        return [0] * len(exact), exact
    low, width = min(exact), max(exact) - min(exact)
    if point == "ends":
        levels = 2**bits - 1
        codes = [round((x - low) * levels / width) for x in exact]
        return codes, [low + code * width / levels for code in codes]
    bins = 2**bits
    codes = [min(math.floor((x - low) * bins / width), bins - 1) for x in exact]
    return codes, [low + (code + Fraction(1, 2)) * width / bins for code in codes]


# --- 16-bit floating point


def rounded(x: Fraction, mantissa_bits: int, lowest: int, highest: int) -> Fraction:
    """The nearest, half to even, of the binary floats with exponents lowest..highest and subnormals, saturating."""
    exponent = lowest
    while TWO ** (exponent + 1) <= abs(x):
        exponent += 1
    step = TWO ** (exponent - mantissa_bits)
    top = TWO**highest * (2 - TWO**-mantissa_bits)
    return max(-top, min(top, round(x / step) * step))


def float16(x: float) -> Fraction:
    """The nearest binary16, at most 65504."""
    return rounded(Fraction(x), 10, -14, 15)


def bfloat16(x: float) -> Fraction:
    """The nearest bfloat16, at most (2 - 2^-7) 2^127."""
    return rounded(Fraction(x), 7, -126, 127)


# --- bits


def pack_bits(codes: list[int], bits: int) -> bytes:
    """The codes one after the other, each from its lowest bit up, into bytes filled from their lowest bit up."""
    stream = [code >> j & 1 for code in codes for j in range(bits)]
    packed = [0] * math.ceil(len(stream) / 8)
    for j, bit in enumerate(stream):
        packed[j // 8] += bit * 2 ** (j % 8)
    return bytes(packed)


def unpack_bits(data: bytes, bits: int, count: int) -> list[int]:
    """The first `count` codes that `pack_bits` packed."""
    stream = [byte >> j & 1 for byte in data for j in range(8)]
    return [sum(stream[i * bits + j] * 2**j for j in range(bits)) for i in range(count)]
