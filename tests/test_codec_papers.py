"""The codecs against exact arithmetic done the dumb way (brute.py), and the invariants that the papers' notes state."""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from itertools import pairwise, product
from typing import Any, Literal, get_args

import brute
import numpy as np
import pytest
import torch
from drawn import LAW, bytes_of, normal
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sl_common.codec import (
    BFloat16,
    Coding,
    Deflate,
    Feedback,
    Float8,
    Float16,
    Identity,
    Link,
    Mask,
    Masked,
    Packed,
    RandTopK,
    Scheme,
    TopK,
    Uniform,
)
from sl_common.codec.bits import pack, unpack
from sl_common.codec.float8 import _codes  # no public way to a format of one's own choice

FEW = settings(LAW, max_examples=15)
MANY = settings(LAW, max_examples=60)
Rounding = Literal["round", "floor"]
ROUNDINGS: tuple[Rounding, ...] = get_args(Rounding)
OCP: tuple[brute.Ocp, ...] = get_args(brute.Ocp)
OCP_BIAS = {"e4m3": 7, "e5m2": 15}
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
moderate = st.floats(-1e6, 1e6, width=32)


def received(codec: Scheme, packed: Packed, coding: Coding) -> Tensor:
    """As the peer has it: from bytes alone, after the check."""
    codec.check(packed.layout)
    return codec.decode(Packed(layout=packed.layout, data=memoryview(bytearray(packed.data))), coding)


def through(codec: Scheme, x: Tensor, coding: Coding = Coding()) -> Tensor:  # noqa: B008  (frozen)
    return received(codec, codec.encode(x, coding), coding)


def body(codec: Scheme, x: Tensor, coding: Coding = Coding()) -> bytes:  # noqa: B008  (frozen)
    return bytes(codec.encode(x, coding).data)


def floats(x: Tensor) -> list[float]:
    """All elements, exactly."""
    return [float(value) for value in x.reshape(-1).double().tolist()]


def as_stored(values: Sequence[Fraction], like: Tensor) -> Tensor:
    """Exact values as the type has them, saturating."""
    top = Fraction(torch.finfo(like.dtype).max)
    clipped = [float(max(-top, min(top, value))) for value in values]
    return torch.tensor(clipped, dtype=torch.float64).to(like.dtype).reshape(like.shape)


def spread(count: int, lowest: float, highest: float, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Both signs, magnitudes uniform in the logarithm, a sixteenth exact zeros, of both signs too."""
    draw = random.Random(seed)
    xs = [draw.choice((-1, 1)) * 10 ** draw.uniform(math.log10(lowest), math.log10(highest)) for _ in range(count)]
    xs[::16] = [draw.choice((0.0, -0.0)) for _ in xs[::16]]
    return torch.tensor(xs, dtype=dtype)


def some(count: int, of: int, seed: int = 0) -> list[int]:
    return sorted(random.Random(seed).sample(range(count), of))


# --- 8-bit floating point: codes


def format_of(packed: Packed) -> tuple[int, int]:
    """(exponent bits, bias), as the header has them."""
    bits, bias = struct.unpack("<Bh", packed.layout.params)
    return bits, bias


def values_of(codec: Float8, packed: Packed) -> list[Fraction | None]:
    """What the 256 codes mean under this header."""
    bits, bias = format_of(packed)
    if codec.format == "searched":
        return [*brute.float8_values(bits, bias)]
    scale = brute.TWO ** (bias - OCP_BIAS[codec.format])
    return [None if value is None else value / scale for value in brute.ocp_values(codec.format)]


def assert_nearest(codec: Float8, x: Tensor, positions: Sequence[int]) -> None:
    packed = codec.encode(x, Coding())
    values, xs = values_of(codec, packed), floats(x)
    expected = [brute.nearest(Fraction(xs[i]), values) for i in positions]
    assert [packed.data[i] for i in positions] == expected
    meant = [values[code] or Fraction(0) for code in expected]
    back = received(codec, packed, Coding()).reshape(-1)[list(positions)]
    assert bytes_of(back) == bytes_of(as_stored(meant, back))


@FEW
@pytest.mark.parametrize("name", ["searched", *OCP])
@given(xs=st.lists(finite, min_size=1, max_size=12))
def test_float8_codes_of_any_numbers_are_the_nearest(name: Any, xs: list[float]) -> None:
    assert_nearest(Float8(format=name), torch.tensor(xs), range(len(xs)))


LARGE = {
    "normal": normal((4096,), 1),
    "relu": normal((65, 65), 2).relu(),
    "all magnitudes": spread(5000, 1e-44, 3e38, 3),
    "subnormal float32": spread(5000, 1e-44, 1e-38, 4),
    "just above them": spread(5000, 1e-38, 1e-35, 5),
    "huge": spread(5000, 1e34, 3.4e38, 6),
    "halves and quarters": torch.arange(-2500, 2500) / 4,
    "float64": spread(5000, 1e-9, 1e3, 7, torch.float64),
    "all float64": spread(5000, 1e-320, 1e308, 8, torch.float64),
    "float16": normal((4100,), 9, torch.float16),
    "two codes at a time": normal(((1 << 20) + 1,), 10),
}


@pytest.mark.parametrize("name", ["searched", *OCP])
@pytest.mark.parametrize("which", LARGE)
def test_float8_codes_of_large_tensors_are_the_nearest_too(name: Any, which: str) -> None:
    x = LARGE[which]
    ends = [int(x.abs().argmax()), x.numel() - 1, 0]
    assert_nearest(Float8(format=name), x, [*some(x.numel(), 24), *ends])


@FEW
@pytest.mark.parametrize("name", OCP)
@given(xs=st.lists(finite, max_size=8))
def test_the_scale_of_a_fixed_format_is_the_widest_power_of_two(name: brute.Ocp, xs: list[float]) -> None:
    x = torch.tensor(xs)
    packed = Float8(format=name).encode(x, Coding())
    amax = max((abs(Fraction(value)) for value in xs), default=Fraction(0))
    assert format_of(packed)[1] == OCP_BIAS[name] + brute.ocp_scale(name, amax)
    assert bytes_of(received(Float8(format=name), packed, Coding())) == bytes_of(as_stored(brute.ocp(xs, name), x))


@cache
def crossings(name: brute.Ocp | int) -> tuple[list[Fraction], list[int]]:
    """Every value of a format, every middle of two neighbours and what lies just beside it, and their codes."""
    values = brute.ocp_values(name) if isinstance(name, str) else [*brute.float8_values(name, 0)]
    positive = [value for value in values[:128] if value is not None]
    middles = [(low + high) / 2 for low, high in pairwise(positive)]
    beside = [middle * (1 + (-1) ** (i // 2) * brute.TWO**-16) for i, middle in enumerate(middles)]
    points = [point * (-1) ** i for i, point in enumerate(positive + middles + beside)]
    points += [-positive[-1], positive[-1]]
    return points, [brute.nearest(point, values) for point in points]


# The second power is the least at which upper halves of float32 still tell the format's smallest steps apart.
@pytest.mark.parametrize(
    ("name", "power"), [("e4m3", p) for p in (-123, -122, 0, 119)] + [("e5m2", p) for p in (-116, -115, 0, 112)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_fixed_formats_round_at_every_boundary(name: brute.Ocp, power: int, dtype: torch.dtype) -> None:
    points, codes = crossings(name)
    x = torch.tensor([float(point * brute.TWO**power) for point in points], dtype=dtype)
    assert list(body(Float8(format=name), x)) == codes
    assert list(body(Float8(format=name), x.repeat(9))) == codes * 9


@pytest.mark.parametrize("bits", [2, 3, 4, 5])
@pytest.mark.parametrize("power", ["least of all", "least by upper halves", "one", "most"])
def test_the_searched_family_rounds_at_every_boundary_and_saturates(bits: int, power: str) -> None:
    points, codes = crossings(bits)
    least = 132 - (7 - bits)
    bias = {"least of all": least + 1, "least by upper halves": least, "one": 7, "most": (1 << bits) - 128}[power]
    beyond = np.array([3.4e38, -3.4e38], np.float32)
    x = np.concatenate([np.array([float(point / brute.TWO**bias) for point in points], np.float32), beyond])
    expected = [*codes, 127, 255]
    assert _codes(x, bits, bias, 0x7F).tolist() == expected
    assert _codes(np.tile(x, 9), bits, bias, 0x7F).tolist() == expected * 9
    assert _codes(x.astype(np.float64), bits, bias, 0x7F).tolist() == expected


@pytest.mark.parametrize("bits", [2, 3, 4, 5])
@pytest.mark.parametrize("bias", [-40, 7, 60])
@pytest.mark.parametrize("times", [1, 16])
def test_a_tensor_that_one_format_has_exactly_is_coded_in_it(bits: int, bias: int, times: int) -> None:
    values = brute.float8_values(bits, bias)
    x = torch.tensor([float(value) for value in values]).repeat(times)
    packed = Float8().encode(x, Coding())
    assert format_of(packed) == (bits, bias)
    assert torch.equal(received(Float8(), packed, Coding()), x)
    assert len(set(bytes(packed.data))) == 255  # async_fp8.md g9: no -0


VECTORS = [
    (
        4,
        7,
        {
            1.0625: 1.0,
            1.1875: 1.25,
            3.3: 3.25,
            0.1: 0.1015625,
            0.001: 0.001953125,
            0.0009: 0.0,
            500.0: 480.0,
            -0.3: -0.3125,
        },
    ),
    (5, 15, {3.3: 3.5, 0.1: 0.09375, 0.001: 0.0009765625, 500.0: 512.0}),
]


@pytest.mark.parametrize(("bits", "bias", "vector"), VECTORS)
def test_float8_vectors_digit_by_digit(bits: int, bias: int, vector: dict[float, float]) -> None:
    """async_fp8.md g10."""
    values = brute.float8_values(bits, bias)
    assert [float(values[brute.nearest(Fraction(x), values)]) for x in vector] == [*vector.values()]
    codes = _codes(np.array([*vector], np.float32), bits, bias, 0x7F)
    assert [float(values[code]) for code in codes] == [*vector.values()]
    assert float(max(values)) == {4: 480.0, 5: 114688.0}[bits]
    assert float(values[1]) == {4: 2.0**-9, 5: 2.0**-16}[bits]
    assert float(values[1 << 7 - bits]) == {4: 2.0**-6, 5: 2.0**-14}[bits]


@pytest.mark.parametrize(("name", "top", "vector"), [("e4m3", 448.0, VECTORS[0][2]), ("e5m2", 57344.0, VECTORS[1][2])])
def test_float8_vectors_hold_for_the_fixed_formats_where_they_reach(
    name: brute.Ocp, top: float, vector: dict[float, float]
) -> None:
    """async_fp8.md g10 with the scale 1; baselines.md 10: greatest numbers 448 and 57344."""
    reached = {x: y for x, y in vector.items() if abs(x) <= top}
    assert floats(through(Float8(format=name), torch.tensor([top, *reached]))) == [top, *reached.values()]


# --- 8-bit floating point: laws

SHAPED = {
    "normal": normal((10,), 1),
    "heavy tails": normal((10,), 2) * normal((10,), 3).mul(3).exp(),
    "uniform": torch.linspace(-1, 1, 10),
    "relu": normal((10,), 4).relu(),
    "few": torch.tensor([1.0, 1.1]),
    "one": torch.tensor([-0.3]),
    "one outlier": torch.cat([normal((9,), 5), torch.tensor([1e4])]),
    "huge": spread(10, 1e36, 3e38, 6),
    "subnormal": spread(10, 1e-44, 1e-39, 7),
    "all magnitudes": spread(10, 1e-44, 3e38, 8),
    "float64": spread(10, 1e-310, 1e-300, 9, torch.float64),
}


@pytest.mark.parametrize("which", SHAPED)
def test_no_candidate_of_the_search_and_no_fixed_format_has_less_error(which: str) -> None:
    """async_fp8.md g11; the grids of fixed formats, so scaled, are parts of candidates."""
    xs = floats(SHAPED[which])
    found = brute.squared_error(xs, *format_of(Float8().encode(SHAPED[which], Coding())))
    least = brute.squared_error(xs, *brute.searched(xs, max(abs(x) for x in xs)))
    assert found <= least * (1 + Fraction(1, 10**9))
    for name in OCP:
        fixed = sum((Fraction(x) - value) ** 2 for x, value in zip(xs, brute.ocp(xs, name), strict=True))
        assert found <= fixed * (1 + Fraction(1, 10**9))


@MANY
@pytest.mark.parametrize("name", ["searched", *OCP])
@given(xs=st.lists(finite, max_size=30), times=st.sampled_from([1, 130]))
def test_float8_is_idempotent_odd_and_monotone_and_keeps_zero(name: Any, xs: list[float], times: int) -> None:
    """async_fp8.md g9."""
    codec, x = Float8(format=name), torch.tensor([*xs, 0.0, -0.0]).repeat(times)
    once = through(codec, x)
    assert torch.equal(through(codec, once), once)
    assert torch.equal(through(codec, -x), -once)
    ordered = through(codec, x.sort().values)
    assert torch.equal(ordered, ordered.sort().values)
    assert not once[x == 0].any()
    assert 0x80 not in body(codec, x)


@pytest.mark.parametrize(("name", "mantissa_bits"), [("e4m3", 3), ("e5m2", 2)])
@pytest.mark.parametrize("which", ["normal", "relu", "halves and quarters", "float64"])
def test_float8_errs_by_half_a_step_at_most(name: Any, mantissa_bits: int, which: str) -> None:
    """async_fp8.md g9; a fixed format's scale leaves nothing outside."""
    x = LARGE[which].double()
    packed = Float8(format=name).encode(LARGE[which], Coding())
    least_step = 2.0 ** (1 - format_of(packed)[1] - mantissa_bits)
    half_steps = (x.abs() * 2.0**-mantissa_bits).clamp(min=least_step) / 2
    assert bool(((received(Float8(format=name), packed, Coding()).double() - x).abs() <= half_steps).all())


@pytest.mark.parametrize("name", ["searched", *OCP])
def test_float8_takes_one_byte_an_element(name: Any) -> None:
    """baselines.md 10: 4x against float32."""
    x = normal((7, 11), 1)
    assert len(body(Float8(format=name), x)) * 4 == x.numel() * x.element_size()


# --- mask-encoded sparsification

FIG_1 = [2.2, 0.8, 1.2, 0.4, 1.8, 0.2, 3.1, 2.0, 2.1, 0.2, 1.1, 1.7, 0.3, 2.8, 1.4, 0.9]
# (d, k) with r = (d - k)/d as a short decimal
counts = st.sampled_from([16, 20, 25]).flatmap(lambda d: st.tuples(st.just(d), st.integers(1, d)))


def mask_body(rows: list[list[float]], k: int, bits: int, *, signed: bool, rounding: Rounding) -> bytes:
    """Values, codes, signs."""
    done = [brute.mask(row, k, bits, signed=signed, rounding=rounding) for row in rows]
    values = [value for _, kept, _ in done for value in kept]
    signs = brute.pack_bits([int(x < 0) for row in rows for x in row], 1) if signed else b""
    codes = brute.pack_bits([code for row_codes, _, _ in done for code in row_codes], bits)
    return struct.pack(f"<{len(values)}f", *values) + codes + signs


def assert_masked(codec: Mask, rows: list[list[float]], k: int) -> None:
    """Every byte and every decoded number."""
    signed = codec.signed if codec.signed is not None else min(map(min, rows)) < 0
    x = torch.tensor(rows)
    packed = codec.encode(x, Coding())
    assert packed.layout.params == struct.pack("<QB", k, signed)
    assert bytes(packed.data) == mask_body(rows, k, codec.b, signed=signed, rounding=codec.rounding)
    done = [brute.mask(row, k, codec.b, signed=signed, rounding=codec.rounding) for row in rows]
    back = received(codec, packed, Coding())
    assert torch.equal(back, as_stored([value for _, _, row in done for value in row], x))


@st.composite
def on_a_grid(draw: st.DrawFn, bits: int, *, signed: bool) -> tuple[list[float], int]:
    """(numbers, k) whose smallest kept one is L·2^p, so that levels and their ties are exact in float32."""
    d, k = draw(counts)
    top = (1 << bits) - 1
    kept = [2 * top, *draw(st.lists(st.integers(2 * top, 6 * top), min_size=k - 1, max_size=k - 1))]
    least = 0 if signed else -4 * top
    others = draw(st.lists(st.integers(least, 2 * top), min_size=d - k, max_size=d - k))
    unit = 2.0 ** draw(st.integers(-100, 60))
    xs = [value * unit for value in draw(st.permutations(kept + others))]
    if signed:
        xs = [-x if draw(st.booleans()) else x for x in xs]
    return xs, k


@pytest.mark.parametrize(
    ("rounding", "codes", "error"),
    [
        ("round", [3, 1, 2, 1, 2, 0, 3, 2, 3, 0, 2, 2, 0, 3, 2, 1], 1.0247),
        ("floor", [3, 1, 1, 0, 2, 0, 3, 2, 3, 0, 1, 2, 0, 3, 2, 1], 1.1832),
    ],
)
def test_the_papers_first_figure(rounding: Rounding, codes: list[int], error: float) -> None:
    """ms.md g11."""
    x = torch.tensor(FIG_1)
    codec = Mask(r=0.75, b=2, rounding=rounding)
    data = body(codec, x)
    assert len(data) == 20
    assert floats(torch.tensor(struct.unpack("<4f", data[:16]))) == floats(torch.tensor([2.2, 3.1, 2.1, 2.8]))
    assert brute.unpack_bits(data[16:], 2, 16) == codes
    assert data == mask_body([floats(x)], 4, 2, signed=False, rounding=rounding)
    assert round(float((through(codec, x) - x).norm()), 4) == error
    assert round(float((through(TopK(r=0.75, scope="batch", key="signed"), x) - x).norm()), 4) == 4.0645


@FEW
@pytest.mark.parametrize("bits", range(1, 9))
@given(data=st.data())
def test_mask_is_exact_to_the_byte_with_ties(bits: int, data: st.DataObject) -> None:
    signed, rounding = data.draw(st.booleans()), data.draw(st.sampled_from(ROUNDINGS))
    xs, k = data.draw(on_a_grid(bits, signed=signed))
    codec = Mask(r=(len(xs) - k) / len(xs), b=bits, signed=signed, rounding=rounding)
    assert_masked(codec, [xs], k)


thirds = st.sampled_from([-12.0, -6.0, -3.0, 0.0, 3.0, 6.0, 12.0])  # whichever is T, levels of two bits are exact


@MANY
@given(
    rows=st.lists(st.lists(thirds, min_size=20, max_size=20), min_size=1, max_size=4),
    k=st.integers(1, 20),
    signed=st.sampled_from([None, True, False]),
    bits=st.sampled_from([1, 2]),
    rounding=st.sampled_from(ROUNDINGS),
)
def test_mask_takes_each_sample_alone_and_what_is_not_above_zero_as_zero(
    rows: list[list[float]], k: int, signed: bool | None, bits: int, rounding: Rounding
) -> None:
    """ms.md f4, f5; of equals the lowest positions (b)."""
    assert_masked(Mask(r=(20 - k) / 20, b=bits, scope="sample", signed=signed, rounding=rounding), rows, k)


@MANY
@given(
    xs=st.lists(moderate, min_size=20, max_size=20),
    k=st.integers(1, 20),
    bits=st.integers(1, 8),
    signed=st.booleans(),
    rounding=st.sampled_from(ROUNDINGS),
    values=st.sampled_from(["float32", "float16"]),
)
def test_mask_of_any_numbers_has_the_nearest_codes(
    xs: list[float], k: int, bits: int, signed: bool, rounding: Rounding, values: Literal["float32", "float16"]
) -> None:
    """ms.md b, f6: T is the least kept value as it arrives."""
    codec = Mask(r=(20 - k) / 20, b=bits, signed=signed, rounding=rounding, values=values)
    data = body(codec, torch.tensor(xs))
    seen, top = [abs(x) if signed else x for x in xs], (1 << bits) - 1
    chosen = brute.largest(seen, k)
    kept = [brute.float16(seen[i]) if values == "float16" else Fraction(seen[i]) for i in chosen]
    width = 4 if values == "float32" else 2
    assert [*struct.unpack(f"<{k}{'f' if width == 4 else 'e'}", data[: width * k])] == kept
    codes = brute.unpack_bits(data[width * k :], bits, 20)
    assert [i for i, code in enumerate(codes) if code == top] == chosen  # ms.md g9
    smallest = min(kept)
    for i in set(range(20)) - set(chosen):
        if smallest <= 0 or seen[i] < 0:
            assert codes[i] == 0
            continue
        level = Fraction(seen[i]) * top / smallest
        if is_clear(level, rounding):
            assert codes[i] == brute.filtered(level, top, rounding)
    back = floats(through(codec, torch.tensor(xs)))
    meant = [max(smallest, Fraction(0)) * code / top for code in codes]
    for i, value in zip(chosen, kept, strict=True):
        meant[i] = value
    meant = [-value if signed and x < 0 else value for value, x in zip(meant, xs, strict=True)]
    assert back == floats(as_stored(meant, torch.tensor(xs)))


def is_clear(level: Fraction, rounding: str, margin: Fraction = Fraction(1, 10_000)) -> bool:
    """False where float32 may fall on the other side of a tie."""
    tie = level + Fraction(1, 2) if rounding in ("round", "nearest") else level
    return abs(tie - round(tie)) > margin


@pytest.mark.parametrize("shape", [(70_000,), (300, 400)])
@pytest.mark.parametrize("scope", ["batch", "sample"])
@pytest.mark.parametrize("bits", [2, 7])
def test_mask_of_large_tensors_too(shape: tuple[int, ...], scope: Literal["batch", "sample"], bits: int) -> None:
    if scope == "sample" and len(shape) == 1:
        shape = (2, 40_000)
    x = normal(shape, 3)
    codec = Mask(r=0.99, b=bits, scope=scope)
    rows = x.reshape(1 if scope == "batch" else shape[0], -1)
    data, back, width = body(codec, x), through(codec, x).reshape(rows.shape), rows.shape[1]
    k, top = brute.kept(width, "0.99"), (1 << bits) - 1
    codes = unpack(np.frombuffer(data, np.uint8)[4 * k * len(rows) :], bits, rows.numel()).reshape(rows.shape)
    assert len(data) == 4 * k * len(rows) + math.ceil(bits * rows.numel() / 8) + math.ceil(rows.numel() / 8)
    for number in some(len(rows), min(3, len(rows))):
        seen = floats(rows[number].abs())
        chosen = brute.largest(seen, k)
        assert np.flatnonzero(codes[number] == top).tolist() == chosen
        assert torch.equal(back[number][chosen], rows[number][chosen])
        smallest = Fraction(seen[chosen[0]] if k == 1 else min(seen[i] for i in chosen))
        for i in set(some(width, 40, number)) - set(chosen):
            level = Fraction(seen[i]) * top / smallest
            if is_clear(level, "round"):
                assert codes[number, i] == brute.filtered(level, top, "round")


RATIOS = ["0", "0.07", "0.1", "0.28", "0.29", "0.5", "0.55", "0.58", "0.7", "0.9", "0.95875", "0.99", "0.999", "1e-3"]


@pytest.mark.parametrize("r", RATIOS)
def test_k_is_the_exact_count_of_a_decimal_ratio(r: str) -> None:
    """ms.md f5, where d·(1 - r) in floating point is often one off."""
    codecs: list[Any] = [Mask(r=float(r)), TopK(r=float(r), scope="batch"), RandTopK(r=float(r))]
    for d in [*range(65), 100, 128, 1000, 1280, 100_000]:
        x = torch.ones(1, d)
        for codec in codecs:
            assert struct.unpack_from("<Q", codec.encode(x, Coding(training=False)).layout.params) == (
                brute.kept(d, r),
            )


def test_a_million_elements_take_290_000_bytes() -> None:
    """ms.md g7: 13.79 times less."""
    x = normal((10**6,), 1).abs()
    assert len(body(Mask(r=0.99, b=2), x)) == 250_000 + 40_000
    assert Mask(r=0.99, b=2, signed=False).sizes(x.dtype, (10**6,)) == (290_000, 290_000)
    assert round(4 * 10**6 / 290_000, 2) == 13.79


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize(("values", "width"), [("float32", 4), ("float16", 2)])
def test_the_mask_takes_what_the_formula_says(bits: int, values: Any, width: int) -> None:
    """ms.md g7, and f6: with float16 values f is 16."""
    for d, r in [(1, "0.99"), (33, "0.5"), (1001, "0.9")]:
        plain = math.ceil(bits * d / 8) + width * brute.kept(d, r)
        codec = Mask(r=float(r), b=bits, values=values)
        assert len(body(codec, torch.ones(d))) == plain
        assert len(body(codec, -torch.ones(d))) == plain + math.ceil(d / 8)


@MANY
@given(xs=st.lists(st.lists(moderate, min_size=10, max_size=10), min_size=2, max_size=2), k=st.integers(1, 20))
def test_a_mask_of_one_bit_is_topk(xs: list[list[float]], k: int) -> None:
    """ms.md g2, f9: the whole batch by signed value; with signs by magnitude."""
    x, r = torch.tensor(xs), (20 - k) / 20
    assert torch.equal(through(Mask(r=r, b=1, signed=False), x), through(TopK(r=r, scope="batch", key="signed"), x))
    assert torch.equal(through(Mask(r=r, b=1, signed=True), x), through(TopK(r=r, scope="batch", key="abs"), x))
    assert torch.equal(through(Mask(r=r, b=1), x.abs()), through(TopK(r=r, scope="batch", key="signed"), x.abs()))


@MANY
@given(
    xs=st.lists(moderate, min_size=20, max_size=20),
    k=st.integers(1, 20),
    bits=st.integers(1, 8),
    signed=st.booleans(),
    rounding=st.sampled_from(ROUNDINGS),
)
def test_the_mask_errs_nowhere_more_than_topk(
    xs: list[float], k: int, bits: int, signed: bool, rounding: Rounding
) -> None:
    """ms.md g3, g4, g5, g6."""
    x, r, top = torch.tensor(xs), (20 - k) / 20, (1 << bits) - 1
    back = through(Mask(r=r, b=bits, signed=signed, rounding=rounding), x).double()
    sparse = through(TopK(r=r, scope="batch", key="abs" if signed else "signed"), x).double()
    wide, least = x.double(), 2.0**-149
    assert bool(((wide - back).abs() <= (wide - sparse).abs() * (1 + 1e-6)).all())
    seen = wide.abs() if signed else wide
    chosen = brute.largest(floats(seen), k)
    others = sorted(set(range(20)) - set(chosen))
    assert torch.equal(back[chosen], wide[chosen])
    smallest = max(float(seen[chosen].min()), 0.0)
    decoded = back.abs() if signed else back
    assert bool((decoded[others] >= 0).all())
    assert bool((decoded[others] <= (top - 1) * smallest / top * (1 + 1e-6) + least).all())
    errors = (seen - decoded).abs()[others][seen[others] >= 0]
    if smallest > 0:
        clamped = seen[others][seen[others] >= 0] > (top - 0.5) * smallest / top
        half = smallest / (2 * top) * (1 + 1e-3) + least
        most = torch.where(clamped, 2 * half, half if rounding == "round" else 2 * half)
        assert bool((errors <= most).all())


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_the_masks_error_falls_as_it_gets_wider(rounding: Rounding) -> None:
    """ms.md g6: in expectation, so over many numbers."""
    x = normal((100, 200), 5).relu()
    errors = [float((through(Mask(r=0.9, b=bits, rounding=rounding), x) - x).norm()) for bits in range(1, 9)]
    assert errors == sorted(errors, reverse=True)
    assert errors[7] < errors[0] / 50


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("scale", [1e-43, 1e-30, 1.0, 1e36])
def test_a_decoded_mask_encodes_to_itself(bits: int, scale: float) -> None:
    """ms.md g8, of activations that are not negative and of any with signs."""
    for x in (normal((30, 20), 6).relu() * scale, normal((30, 20), 7) * scale):
        for scope in ("batch", "sample"):
            codec = Mask(r=0.9, b=bits, scope=scope)
            once = through(codec, x)
            assert torch.equal(through(codec, once), once)


@pytest.mark.parametrize("signed", [None, True, False])
@pytest.mark.parametrize("shape", [(12,), (3, 4)])
def test_a_mask_that_keeps_all_is_lossless(signed: bool | None, shape: tuple[int, ...]) -> None:
    """ms.md g1."""
    x = normal(shape, 8)
    assert torch.equal(through(Mask(r=0.0, signed=signed), x), x)


@pytest.mark.parametrize("signed", [None, True, False])
@pytest.mark.parametrize("bits", [1, 2, 8])
def test_filtered_elements_decode_to_zero_where_the_threshold_is_not_above_it(signed: bool | None, bits: int) -> None:
    """ms.md f4."""
    assert_masked(Mask(r=0.5, b=bits, signed=signed), [[0.0] * 6], 3)
    assert_masked(Mask(r=0.5, b=bits, signed=signed), [[0.0, 2.0, 0.0, 0.0, 1.0, 0.0]], 3)
    assert_masked(Mask(r=0.5, b=bits, signed=False), [[-1.0, 2.0, -3.0, -2.0, 1.0, -5.0]], 3)
    assert_masked(Mask(r=0.5, b=bits, signed=False), [[-1.0, -2.0, -3.0, -2.0]], 2)


def test_a_threshold_that_float16_takes_to_zero_makes_the_other_codes_zero() -> None:
    """ms.md f4, f6."""
    x = torch.tensor([1.0, 2e-8, 1e-8, 1e-8])
    assert floats(through(Mask(r=0.5, values="float16"), x)) == [1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("xs", [[3e38, 1e-29, 1e-30, 0.0], [1e-28, 1e-29, -3e38, 0.0]], ids=["kept", "filtered"])
def test_a_mask_over_all_of_float32s_range_is_quiet(xs: list[float]) -> None:
    x = torch.tensor(xs)
    assert torch.equal(through(Mask(r=0.5, b=1, signed=False), x), torch.where(x > 2e-30, x, 0.0))


def test_the_masks_gradient_travels_unchanged() -> None:
    """ms.md g10, f10."""
    gradient = normal((4, 5), 9)
    assert Link(up=Mask()).down == Identity()
    assert bytes_of(through(Link(up=Mask()).down, gradient)) == bytes_of(gradient)


# --- top-k


@MANY
@given(
    xs=st.lists(
        st.lists(st.one_of(st.integers(-3, 3).map(float), finite), min_size=20, max_size=20), min_size=1, max_size=4
    ),
    k=st.integers(1, 20),
    key=st.sampled_from(["abs", "signed"]),
    scope=st.sampled_from(["sample", "batch"]),
)
def test_topk_keeps_exactly_the_k_largest(
    xs: list[list[float]], k: int, key: Literal["abs", "signed"], scope: Literal["sample", "batch"]
) -> None:
    """baselines.md 7: kept entries exact, k = d lossless."""
    x, r = torch.tensor(xs), (20 - k) / 20
    rows = xs if scope == "sample" else [[value for row in xs for value in row]]
    kept = k * len(xs) // len(rows)
    codec = TopK(r=r, key=key, scope=scope)
    back = through(codec, x)
    assert floats(back) == [value for row in rows for value in brute.topk(row, kept, key)]
    assert k < 20 or torch.equal(back, x)
    positions = [brute.largest([abs(value) for value in row] if key == "abs" else row, kept) for row in rows]
    assert body(codec, x) == sparse_body(rows, positions)


def sparse_body(rows: list[list[float]], positions: list[list[int]]) -> bytes:
    """Values, then a bitmap or indices, whichever is shorter: ms.md c, baselines.md 7."""
    width = len(rows[0])
    values = [row[i] for row, at in zip(rows, positions, strict=True) for i in at]
    bitmap = brute.pack_bits([int(i in at) for at in positions for i in range(width)], 1)
    indices = brute.pack_bits([i for at in positions for i in at], math.ceil(math.log2(width)))
    return struct.pack(f"<{len(values)}f", *values) + min(bitmap, indices, key=len)


@pytest.mark.parametrize("k", [1, 2, 5, 9, 10, 11, 12, 63, 64])
@pytest.mark.parametrize("codec", [TopK, RandTopK])
def test_both_layouts_carry_the_same(k: int, codec: type[TopK | RandTopK]) -> None:
    """64 elements: indices of 6 bits up to k = 10, from 11 on a bitmap."""
    x = normal((3, 64), k)
    top = [brute.largest(floats(row.abs()), k) for row in x]
    one = codec(r=(64 - k) / 64)
    coding = Coding(training=False)
    assert body(one, x, coding) == sparse_body([floats(row) for row in x], top)
    assert len(body(one, x, coding)) == 12 * k + (math.ceil(18 * k / 8) if k <= 10 else 24)
    assert floats(through(one, x, coding)) == [v for row in x for v in brute.topk(floats(row), k, "abs")]


@MANY
@given(xs=st.lists(moderate, min_size=20, max_size=20), k=st.integers(1, 20))
def test_topk_loses_exactly_the_squares_of_what_it_drops(xs: list[float], k: int) -> None:
    """baselines.md 7: at most 1 - k/d of all."""
    back = floats(through(TopK(r=(20 - k) / 20, scope="batch"), torch.tensor(xs)))
    lost = sum((Fraction(x) - Fraction(y)) ** 2 for x, y in zip(xs, back, strict=True))
    squares = sorted(Fraction(x) ** 2 for x in xs)
    assert lost == sum(squares[: 20 - k])
    assert lost <= (1 - Fraction(k, 20)) * sum(squares)


def long_rows() -> dict[str, Tensor]:
    """Rows so long that a sample of them guesses the threshold, some against the guess."""
    n, stride = 9000, 8
    on_sample, off_sample = torch.zeros(n), torch.ones(n)
    on_sample[::stride] = normal((n // stride,), 1).abs()
    off_sample[::stride] = 0
    return {
        "normal": normal((n,), 2),
        "few values": torch.randint(-2, 3, (n,), generator=torch.Generator().manual_seed(3)).float(),
        "all equal": torch.ones(n),
        "zeros": torch.zeros(n),
        "the sample has the largest": on_sample,
        "the sample has the smallest": off_sample * (1 + normal((n,), 4).abs()),
        "ascending": torch.arange(n) / n,
        "sparse": normal((n,), 5) * (normal((n,), 6) > 2.5),
    }


@pytest.mark.parametrize("which", long_rows())
@pytest.mark.parametrize("r", ["0.1", "0.5", "0.99", "0.9999"])
@pytest.mark.parametrize("key", ["abs", "signed"])
def test_topk_of_long_rows_is_exact_too(which: str, r: str, key: Literal["abs", "signed"]) -> None:
    x = long_rows()[which]
    k = brute.kept(len(x), r)
    at = brute.largest(floats(x.abs() if key == "abs" else x), k)
    kept = torch.zeros_like(x)
    kept[at] = x[at]
    assert torch.equal(through(TopK(r=float(r), key=key, scope="batch"), x), kept)
    assert body(TopK(r=float(r), key=key, scope="batch"), x)[: 4 * k] == bytes_of(x[at])


# --- RandTop-k


def drawn_rows(row: list[float], k: int, alpha: float, rows: int = 4000) -> Tensor:
    """(rows, d): True where kept."""
    x = torch.tensor([row]).repeat(rows, 1)
    codec = RandTopK(r=(len(row) - k) / len(row), alpha=alpha)
    back = through(codec, x, Coding(draw=(0, "papers")))
    assert bool(((back == x) | (back == 0)).all())
    return back != 0


@pytest.mark.parametrize("alpha", ["0", "0.05", "0.3", "0.9", "1"])
@pytest.mark.parametrize("k", [1, 2])
def test_each_position_is_drawn_as_often_as_it_should(alpha: str, k: int) -> None:
    """baselines.md 8: weights (1 - α)/k and α/(D - k), without replacement."""
    row = [1.0, -5.0, 2.0, 4.0, -3.0]
    kept = drawn_rows(row, k, float(alpha))
    order = sorted(range(5), key=lambda i: -abs(row[i]))
    for i, chance in zip(order, map(float, brute.randtopk_inclusion(5, k, Fraction(alpha))), strict=True):
        spread_of = math.sqrt(chance * (1 - chance) / len(kept))
        assert abs(float(kept[:, i].double().mean()) - chance) <= 5 * spread_of
    assert bool((kept.sum(1) == k).all())


def test_more_alpha_keeps_more_of_the_others() -> None:
    """baselines.md 8."""
    row = [float(i + 1) for i in range(20)]
    others = [int(drawn_rows(row, 4, alpha)[:, :16].sum()) for alpha in (0, 0.05, 0.1, 0.2, 0.3, 0.6, 1)]
    assert others[0] == 0
    assert all(low < high for low, high in pairwise(others))
    assert others[-1] == 4000 * 4


@pytest.mark.parametrize("k", [1, 7, 10, 13, 19, 20])
@pytest.mark.parametrize("alpha", [0.0, 0.1, 1.0])
def test_exactly_k_are_kept_of_each_sample(k: int, alpha: float) -> None:
    """baselines.md 8, and at α = 1 also where fewer than k others are left."""
    x = normal((50, 4, 5), 1)
    x[7] = 0.5  # all equal
    back = through(RandTopK(r=(20 - k) / 20, alpha=alpha), x, Coding(draw=(3,)))
    assert bool(((back != 0).flatten(1).sum(1) == k).all())
    assert bool(((back == x) | (back == 0)).all())
    assert k < 20 or torch.equal(back, x)


@pytest.mark.parametrize(
    ("alpha", "training"),
    [(0.0, True), (1e-12, True), (1e-300, True), (0.3, False), (1.0, False)],
)
def test_randtopk_without_alpha_or_training_is_topk(alpha: float, training: bool) -> None:
    """baselines.md 8: the limit α → 0, and evaluation is deterministic."""
    x = normal((9, 40), 2)
    for draw in (1, 2):
        coding = Coding(training=training, draw=(draw,))
        assert body(RandTopK(r=0.9, alpha=alpha), x, coding) == body(TopK(r=0.9), x)


@pytest.mark.parametrize("alpha", [1e-308, 5e-324])
def test_randtopk_of_the_least_alphas_is_topk(alpha: float) -> None:
    x = torch.arange(40.0).reshape(2, 20)
    assert body(RandTopK(r=0.9, alpha=alpha), x, Coding(draw=(1,))) == body(TopK(r=0.9), x)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("alpha", ["0.1", "0.9"])
def test_the_variant_of_ms_draws_from_the_whole_batch_by_signed_value(alpha: str, training: bool) -> None:
    """ms.md, corrections: whole flattened tensor, signed order, without replacement, in evaluation too."""
    x = torch.tensor([[1.0, -5.0], [2.0, 4.0], [-3.0, 0.5]])
    codec = RandTopK(r=4 / 6, alpha=float(alpha), scope="batch", key="signed", evaluate="random")
    tries = [through(codec, x, Coding(training=training, draw=(n, "ms"))) for n in range(3000)]
    assert all(bool(((back == x) | (back == 0)).all()) for back in tries)
    kept = torch.stack([back.flatten() != 0 for back in tries])
    assert bool((kept.sum(1) == 2).all()), "two of the batch's six, wherever they are"
    order = sorted(range(6), key=lambda i: -x.flatten()[i].item())
    for i, chance in zip(order, map(float, brute.randtopk_inclusion(6, 2, Fraction(alpha))), strict=True):
        spread_of = math.sqrt(chance * (1 - chance) / len(kept))
        assert abs(float(kept[:, i].double().mean()) - chance) <= 5 * spread_of


def test_the_parts_of_that_variant_are_independent() -> None:
    """Each can be chosen alone; without a draw they are Top-k's own."""
    x = normal((9, 40), 2)
    still = Coding(training=False, draw=(1,))
    for scope, key in product(("sample", "batch"), ("abs", "signed")):
        assert body(RandTopK(r=0.9, scope=scope, key=key), x, still) == body(TopK(r=0.9, scope=scope, key=key), x)
    codec = RandTopK(r=0.9, alpha=0.3, evaluate="random")
    assert (
        body(codec, x, still)
        == body(codec, x, Coding(draw=(1,)))
        == body(RandTopK(r=0.9, alpha=0.3), x, Coding(draw=(1,)))
    )


def test_randtopk_is_seeded_by_its_draw_alone() -> None:
    """baselines.md 8."""
    x, codec = normal((20, 30), 3), RandTopK(r=0.8, alpha=0.3)
    first = body(codec, x, Coding(draw=(1, "a")))
    torch.manual_seed(5)
    assert body(codec, x, Coding(draw=(1, "a"))) == first
    assert body(codec, x, Coding(draw=(2, "a"))) != first
    assert len({bytes_of(row) for row in through(codec, x[:1].expand(20, 30), Coding(draw=(1,)))}) > 10


def test_randtopks_relative_size_is_the_papers() -> None:
    """baselines.md 7, 8: (k/d)·(1 + ⌈log2 d⌉/32) with the cut of CIFAR-100's setting."""
    for r, k in [("0.98", 2), ("0.95", 6), ("0.9", 12)]:
        bits = 8 * len(body(RandTopK(r=float(r)), normal((32, 128), 4)))
        assert Fraction(bits, 32 * 32 * 128) == Fraction(k, 128) * (1 + Fraction(7, 32))


@pytest.mark.parametrize("codec", [TopK(r=0.9), RandTopK(r=0.9, alpha=0.3), Mask(r=0.9, b=1)], ids=repr)
def test_a_masked_gradient_is_zero_off_the_support_and_four_bytes_on_it(codec: Any) -> None:
    """baselines.md 7, 8."""
    like = through(codec, normal((8, 5, 10), 5), Coding(draw=(1,)))
    gradient = normal((8, 5, 10), 6)
    coding = Coding(like=like)
    assert len(body(Masked(), gradient, coding)) == 4 * int((like != 0).sum())
    assert body(Masked(), gradient, coding) == bytes_of(gradient[like != 0])
    assert torch.equal(through(Masked(), gradient, coding), torch.where(like != 0, gradient, 0.0))


# --- uniform quantisation


@MANY
@given(
    xs=st.lists(finite, min_size=1, max_size=20),
    bits=st.integers(1, 8),
    point=st.sampled_from(["ends", "middle"]),
    wide=st.booleans(),
)
def test_uniform_codes_are_the_nearest(
    xs: list[float], bits: int, point: Literal["ends", "middle"], wide: bool
) -> None:
    x = torch.tensor(xs, dtype=torch.float64 if wide else torch.float32)
    codec = Uniform(bits=bits, point=point)
    data, back = body(codec, x), floats(through(codec, x))
    codes, values = brute.uniform(xs, bits, point)
    found = brute.unpack_bits(data, bits, len(xs))
    assert len(data) == math.ceil(bits * len(xs) / 8)
    low, width = min(map(Fraction, xs)), max(map(Fraction, xs)) - min(map(Fraction, xs))
    steps = 2**bits - (point == "ends")
    slack = max(abs(Fraction(x)) for x in xs) / 2**23 + Fraction(1, 2**149)
    for i, value in enumerate(map(Fraction, xs)):
        level = (value - low) * steps / width if width else Fraction(0)
        if not width or is_clear(level, "nearest" if point == "ends" else "floor"):
            assert found[i] == codes[i]
            assert abs(Fraction(back[i]) - values[i]) <= slack
        assert abs(Fraction(back[i]) - value) <= width / (2 * steps) * (1 + Fraction(1, 2000)) + slack
    if point == "ends" or not width:  # end points, and equal elements, are exact
        assert all(y == x for x, y in zip(xs, back, strict=True) if x in (min(xs), max(xs)))
    if point == "ends":
        assert floats(through(codec, torch.tensor(back, dtype=x.dtype))) == back


@pytest.mark.parametrize("bits", [1, 3, 8])
@pytest.mark.parametrize("point", ["ends", "middle"])
@pytest.mark.parametrize("which", ["normal", "halves and quarters", "float64", "float16", "two codes at a time"])
def test_uniform_codes_of_large_tensors_too(bits: int, point: Literal["ends", "middle"], which: str) -> None:
    x = LARGE[which]
    positions = some(x.numel(), 40)
    found = unpack(np.frombuffer(body(Uniform(bits=bits, point=point), x), np.uint8), bits, x.numel())
    chosen = [float(x.min()), float(x.max()), *[float(x.reshape(-1)[i]) for i in positions]]
    codes, values = brute.uniform(chosen, bits, point)
    back = through(Uniform(bits=bits, point=point), x).reshape(-1)
    steps, low, width = 2**bits - (point == "ends"), Fraction(chosen[0]), Fraction(chosen[1]) - Fraction(chosen[0])
    for i, code, value in zip(positions, codes[2:], values[2:], strict=True):
        level = (Fraction(float(x.reshape(-1)[i])) - low) * steps / width
        if is_clear(level, "nearest" if point == "ends" else "floor"):
            assert found[i] == code
            assert float(back[i]) == pytest.approx(float(value), rel=1e-3 if x.dtype == torch.float16 else 1e-6)


UNIFORM_VECTORS: list[Any] = [("ends", [-1.0, 0.0, 1.0, 2.0]), ("middle", [-0.625, 0.125, 0.875, 1.625])]


@pytest.mark.parametrize(("point", "vector"), UNIFORM_VECTORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_uniform_vectors(point: Literal["ends", "middle"], vector: list[float], dtype: torch.dtype) -> None:
    """baselines.md 9: .5 is half-way and goes up to the even 2."""
    x = torch.tensor([-1.0, 0.0, 0.5, 2.0], dtype=dtype)
    assert brute.unpack_bits(body(Uniform(bits=2, point=point), x), 2, 4) == [0, 1, 2, 3]
    assert floats(through(Uniform(bits=2, point=point), x)) == pytest.approx(vector, rel=0, abs=1e-15)


def test_the_uniform_vectors_zero_is_zero() -> None:
    """baselines.md 9: codes 0, 1, 2, 3 are (-1, 0, 1, 2)."""
    assert through(Uniform(bits=2), torch.tensor([-1.0, 0.0, 0.5, 2.0]))[1] == 0


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("point", ["ends", "middle"])
def test_uniform_rounds_half_to_even_and_bins_from_below(bits: int, point: Literal["ends", "middle"]) -> None:
    top = 2**bits - (point == "ends")
    xs = [step / 2 for step in range(2 * top + 1)]
    codes, values = brute.uniform(xs, bits, point)
    assert body(Uniform(bits=bits, point=point), torch.tensor(xs)) == brute.pack_bits(codes, bits)
    back = through(Uniform(bits=bits, point=point), torch.tensor(xs))
    assert floats(back) == pytest.approx([float(value) for value in values], rel=1e-6)


@pytest.mark.parametrize("codec", [Uniform(point="ends"), Uniform(point="middle"), Uniform(rounding="stochastic")])
@pytest.mark.parametrize("value", [0.0, -0.1, 3.4e38, 1e-45])
def test_equal_elements_have_code_zero_and_are_exact(codec: Uniform, value: float) -> None:
    """baselines.md 9."""
    x = torch.full((9,), value)
    assert body(codec, x) == bytes(9)
    assert torch.equal(through(codec, x), x)


@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_stochastic_rounding_is_unbiased_and_seeded(bits: int, dtype: torch.dtype) -> None:
    """baselines.md 9 (QSGD)."""
    times, step = 20_000, 1 / (2**bits - 1)
    values = torch.tensor([0.0, 0.013, 0.2, 1 / 3, 0.5, 0.77, 0.9991, 1.0], dtype=dtype)
    x, codec = values.repeat(times, 1), Uniform(bits=bits, rounding="stochastic")
    back = through(codec, x, Coding(draw=(1,)))
    assert bool(((back - x).abs() <= step * (1 + 1e-5)).all())
    assert torch.equal(back[:, [0, -1]], x[:, [0, -1]])
    for value, mean in zip(floats(values), floats(back.double().mean(0)), strict=True):
        share = value / step % 1
        assert abs(mean - value) <= 5 * step * math.sqrt(share * (1 - share) / times) + 1e-6
    first = body(codec, x[:100], Coding(draw=(1,)))
    assert body(codec, x[:100], Coding(draw=(1,))) == first
    assert body(codec, x[:100], Coding(draw=(2,))) != first


def test_stochastic_rounding_leaves_end_points_alone() -> None:
    """baselines.md 9: end points exact."""
    x = torch.zeros(1 << 18)
    x[1:] = 0.3
    assert torch.equal(through(Uniform(rounding="stochastic"), x, Coding(draw=(3,))), x)


# --- 16-bit floating point

HALVES: list[Any] = [(Float16(), brute.float16), (BFloat16(), brute.bfloat16)]
EDGES = [
    *[0.0, -0.0, 1.0, 65504.0, 65519.0, 65519.996, 65520.0, 1e5, 3.4028235e38, 3.3895314e38, 3.3961775e38],
    *[2.0**power for power in (-14, -15, -24, -25, -26, -126, -133, -134, -135, -149)],
    *[2.0**-24 * step for step in (0.5, 1.5, 2.5, 1.25)],
    *[2.0**-133 * step for step in (0.5, 1.5, 2.5, 1.25)],
    *[1 + step / 2**12 for step in range(9)],
    *[1 + step / 2**9 for step in range(9)],
    *[1 + 2.0**-11 + 2.0**-23, 1 + 2.0**-8 + 2.0**-23, 1 + 2.0**-8 - 2.0**-23],
]


@pytest.mark.parametrize(("codec", "nearest"), HALVES, ids=["float16", "bfloat16"])
def test_half_precision_rounds_its_edges_exactly(codec: Any, nearest: Any) -> None:
    x = torch.tensor([*EDGES, *[-edge for edge in EDGES]])
    assert [Fraction(y) for y in floats(through(codec, x))] == [nearest(value) for value in floats(x)]


@MANY
@pytest.mark.parametrize(("codec", "nearest"), HALVES, ids=["float16", "bfloat16"])
@given(xs=st.lists(finite, max_size=10))
def test_half_precision_of_any_numbers_is_the_nearest(codec: Any, nearest: Any, xs: list[float]) -> None:
    once = through(codec, torch.tensor(xs))
    assert [Fraction(y) for y in floats(once)] == [nearest(x) for x in xs]
    assert torch.equal(through(codec, once), once)
    assert len(body(codec, once)) == 2 * len(xs)


# --- bits


@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_are_packed_without_gaps_from_the_lowest_bit(bits: int) -> None:
    for length in range(41):
        codes = np.random.default_rng(length).integers(0, 1 << bits, length).astype(np.uint8)
        data = pack(codes, bits)
        assert data.tobytes() == brute.pack_bits(codes.tolist(), bits)
        assert unpack(data, bits, length).tolist() == brute.unpack_bits(data.tobytes(), bits, length) == codes.tolist()
        more = np.concatenate([data, np.array([255], np.uint8)])
        assert unpack(more, bits, length).tolist() == codes.tolist()


@pytest.mark.parametrize("bits", range(1, 9))
def test_so_are_codes_of_more_than_a_block(bits: int) -> None:
    length = (1 << 16) + (-3, 0, 3)[bits % 3]
    codes = np.random.default_rng(length).integers(0, 1 << bits, length).astype(np.uint8)
    data = pack(codes, bits)
    assert data.tobytes() == brute.pack_bits(codes.tolist(), bits)
    assert np.array_equal(unpack(data, bits, length), codes)


# --- error feedback

FED: list[Any] = [
    *[Float8(format="searched"), Float8(format="e4m3"), Float16(), BFloat16(), Uniform(bits=2)],
    *[Uniform(bits=4, rounding="stochastic"), Mask(r=0.9, b=2), TopK(r=0.9), TopK(r=0.9, scope="batch")],
    RandTopK(r=0.8, alpha=0.2),
]


@pytest.mark.parametrize("of", FED, ids=repr)
def test_what_feedback_sends_of_a_constant_adds_up(of: Any) -> None:
    """The sum of T decoded tensors is T·x less the residual, and that stays bounded."""
    x, steps, residuals = normal((4, 30), 1), 150, dict[str, Tensor]()
    total, largest_lost = torch.zeros(4, 30, dtype=torch.float64), 0.0
    for step in range(steps):
        total += through(Feedback(of=of), x, Coding(name="w", residuals=residuals, draw=(step,))).double()
        largest_lost = max(largest_lost, float(residuals["w"].norm() / x.norm()))
    assert torch.allclose(total + residuals["w"].double(), steps * x.double(), rtol=1e-5, atol=1e-3)
    assert largest_lost < 20  # r = .9: Σ (1 - k/d)^(t/2) = 18.5 bounds Top-k's
    plain = float((through(of, x) - x).norm())
    fed = float((total / steps - x).norm())
    assert fed <= 20 * float(x.norm()) / steps
    assert fed < plain


def test_a_residual_belongs_to_a_name_and_a_shape() -> None:
    codec, residuals = Feedback(of=Uniform(bits=2)), dict[str, Tensor]()
    x, shorter = normal((4, 6), 2), normal((3, 6), 3)
    coding = Coding(name="w", residuals=residuals)
    plain = body(codec.of, x)
    assert body(codec, x, coding) == plain
    assert body(codec, x, coding) != plain
    assert body(codec, x, Coding(name="v", residuals=residuals)) == plain
    assert body(codec, shorter, coding) == body(codec.of, shorter)
    assert residuals["w"].shape == shorter.shape
    assert body(codec, x, coding) == plain
    assert body(codec, x.T, coding) == body(codec.of, x.T)
    assert body(codec, x) == plain  # nowhere to keep one


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_feedback_does_not_diverge_on_what_its_type_can_hold(dtype: torch.dtype) -> None:
    x = torch.tensor([torch.finfo(dtype).max * 0.99, 1.0], dtype=dtype)
    coding = Coding(name="w", residuals={})
    for _ in range(20):
        assert bool(torch.isfinite(through(Feedback(of=Float8(format="e5m2")), x, coding)).all())


# --- deflate


@pytest.mark.parametrize("level", [1, 9])
@pytest.mark.parametrize("of", [Identity(), *FED, Mask(), Uniform()], ids=repr)
def test_deflate_decodes_the_same_and_is_never_larger(of: Any, level: Any) -> None:
    codec, coding = Deflate(of=of, level=level), Coding(draw=(4,))
    for x in (normal((40, 50), 1), normal((40, 50), 2).relu(), torch.zeros(40, 50), torch.ones(1), torch.empty(0, 3)):
        inner = of.encode(x, coding)
        packed = codec.encode(x, coding)
        assert packed.layout.nbytes == len(packed.data) <= len(inner.data)
        assert bytes_of(received(codec, packed, coding)) == bytes_of(received(of, inner, coding))
    assert len(body(codec, torch.zeros(400, 50), coding)) < len(body(of, torch.zeros(400, 50), coding)) / 5
