"""Exact arithmetic on weights: means, fingerprints and the search for NaN."""

from __future__ import annotations

import hashlib
import itertools
import math
import struct
import zlib

import pytest
import torch
from drawn import LAW, bytes_of, normal
from hypothesis import given, settings
from hypothesis import strategies as st

from sl_common.codec.packed import DTYPES
from sl_common.tensors import all_finite, checksum, state_digest, stride, weighted_mean

FLOATS = [dtype for dtype in DTYPES if dtype.is_floating_point]
SHORT = [dtype for dtype in FLOATS if dtype != torch.float64]  # a product with a count is exact in float64
WIDE = [dtype for dtype in FLOATS if dtype.itemsize > 1]  # torch computes with these
INTEGERS = [dtype for dtype in DTYPES if not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)]

# --- the weighted mean


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@LAW
@given(st.lists(st.integers(1, 60_000), min_size=1, max_size=6))
def test_the_mean_is_that_of_a_dumb_loop(dtype: torch.dtype, counts: list[int]) -> None:
    states = [{"w": normal((2, 3), seed, dtype), "b": normal((), seed + 99, dtype)} for seed in range(len(counts))]
    mean = weighted_mean(states, counts)
    for name in ("w", "b"):
        columns = zip(*(state[name].flatten().tolist() for state in states), strict=True)
        dumb = [sum(n * x for n, x in zip(counts, column, strict=True)) / sum(counts) for column in columns]
        want = torch.tensor(dumb, dtype=torch.float64).to(dtype).reshape(states[0][name].shape)
        assert bytes_of(mean[name]) == bytes_of(want)
        assert mean[name].dtype == dtype


@pytest.mark.parametrize("dtype", SHORT, ids=str)
@pytest.mark.parametrize("clients", range(1, 13))
@settings(LAW, max_examples=20)
@given(data=st.data())
def test_the_mean_of_one_thing_is_that_thing(dtype: torch.dtype, clients: int, data: st.DataObject) -> None:
    counts = data.draw(st.lists(st.integers(1, 10**6), min_size=clients, max_size=clients) | st.just([1] * clients))
    x = normal((200,), data.draw(st.integers(0, 2**32)), dtype)
    assert bytes_of(weighted_mean([{"w": x}] * clients, counts)["w"]) == bytes_of(x)


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_integers_are_rounded_half_to_even(dtype: torch.dtype) -> None:
    low, high = torch.tensor([0, 1, 2, 3, 10], dtype=dtype), torch.tensor([1, 2, 3, 4, 14], dtype=dtype)
    assert weighted_mean([{"n": low}, {"n": high}], [1, 1])["n"].tolist() == [0, 2, 2, 4, 12]
    assert weighted_mean([{"n": low}, {"n": high}], [1, 3])["n"].tolist() == [1, 2, 3, 4, 13]
    assert weighted_mean([{"n": low}, {"n": high}], [1, 3])["n"].dtype == dtype


def test_the_order_is_the_callers() -> None:
    """Sums depend on it, so whoever calls must sort: the mean itself does not, or a replay would."""
    big = {"w": torch.tensor([2.0**60], dtype=torch.float64)}
    minus, one = {"w": -big["w"]}, {"w": torch.ones(1, dtype=torch.float64)}
    assert weighted_mean([big, minus, one], [1, 1, 1])["w"].item() == 1 / 3
    assert weighted_mean([big, one, minus], [1, 1, 1])["w"].item() == 0.0


def test_the_mean_leaves_its_arguments_alone() -> None:
    states = [{"w": normal((5,), seed)} for seed in range(3)]
    before = [bytes_of(state["w"]) for state in states]
    mean = weighted_mean(states[:1], [7])
    mean["w"].zero_()
    weighted_mean(states, [1, 2, 3])
    assert [bytes_of(state["w"]) for state in states] == before


# --- digests and finiteness


def test_a_digest_changes_with_every_bit_name_dtype_and_shape() -> None:
    state = {"a": torch.tensor([0.0, 1.5]), "b": torch.zeros(2, 3, dtype=torch.int32)}
    variants = [
        state,
        {**state, "a": torch.tensor([-0.0, 1.5])},
        {**state, "a": torch.nextafter(state["a"], torch.ones(2))},
        {**state, "a": torch.tensor([1.5, 0.0])},
        {**state, "b": torch.zeros(3, 2, dtype=torch.int32)},
        {**state, "b": torch.zeros(6, dtype=torch.int32)},
        {**state, "b": torch.zeros(2, 3)},
        {"a": state["a"], "c": state["b"]},
        {"a": state["a"]},
        {**state, "c": torch.empty(0)},
        {**state, "c": torch.empty(0, 2)},
        {},
    ]
    assert len({state_digest(variant) for variant in variants}) == len(variants)
    assert len(state_digest(state)) == 32


@LAW
@given(st.permutations(["x", "y", "a.b", "a"]))
def test_a_digest_does_not_depend_on_insertion_order_or_memory(order: list[str]) -> None:
    state = {name: normal((3, 4), seed) for seed, name in enumerate(["x", "y", "a.b", "a"])}
    assert state_digest({name: state[name].T.contiguous().T for name in order}) == state_digest(state)


def test_a_digest_stays_as_it_is() -> None:
    """Golden: a checkpoint's digests are compared by a later version."""
    sha = hashlib.sha256(b"n\0torch.int64\0()\0" + struct.pack("<q", 3))
    sha.update(b"w\0torch.float32\0(1, 2)\0" + struct.pack("<2f", 1.0, -2.0))
    assert state_digest({"w": torch.tensor([[1.0, -2.0]]), "n": torch.tensor(3)}) == sha.digest()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 49, 99])
def test_one_bad_element_is_seen_wherever_it_is(dtype: torch.dtype, bad: float, place: int) -> None:
    x = normal((10, 10), 0, dtype)
    assert all_finite(x)
    x.view(-1)[place] = bad if dtype in WIDE else math.nan  # not all of those of 8 bits have infinities
    assert not all_finite(x)


@pytest.mark.parametrize("dtype", WIDE, ids=str)
@pytest.mark.parametrize("sign", [1, -1])
def test_a_sum_that_overflows_is_not_an_error(dtype: torch.dtype, sign: int) -> None:
    x = torch.full((1000,), sign * torch.finfo(dtype).max, dtype=dtype)
    assert not bool(torch.isfinite(x.sum()))
    assert all_finite(x)


def test_infinities_that_cancel_are_seen() -> None:
    assert not all_finite(torch.tensor([math.inf, -math.inf]))


def test_what_has_no_fractions_or_no_elements_is_finite() -> None:
    assert all_finite(torch.empty(0))
    assert all_finite(torch.tensor([2**62, 2**62, 2**62]))
    assert all_finite(torch.ones(3, dtype=torch.bool))


@LAW
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=3), st.sampled_from([torch.float32, torch.float16, torch.int64])
)
def test_the_checksum_of_a_small_tensor_is_that_of_all_its_bytes(shape: list[int], dtype: torch.dtype) -> None:
    x = normal(tuple(shape), 0).to(dtype)
    assert checksum(x) == f"{zlib.crc32(bytes_of(x)):08x}"
    assert checksum(x.T.contiguous().T if x.dim() == 2 else x) == checksum(x), "not of how it lies in memory"
    assert checksum(x + 1) != checksum(x)


def test_the_checksum_of_a_large_tensor_sees_every_sample_and_every_channel() -> None:
    x = normal((64, 64, 16, 16), 0)
    known = checksum(x)
    for place in itertools.product((0, 31, 63), (0, 31, 63)):
        other = x.clone()
        other[place] += 1
        assert checksum(other) != known, place
    assert checksum(x.flip(0)) != known


@LAW
@given(st.integers(0, 10**7), st.integers(1, 5000))
def test_a_stride_is_one_or_prime_and_leaves_no_more_than_wanted(count: int, at_most: int) -> None:
    found = stride(count, at_most)
    assert len(range(0, count, found)) <= at_most
    assert found == 1 or all(found % divisor for divisor in range(2, math.isqrt(found) + 1))
    assert found == 1 or found < 2 * -(-count // at_most), "Bertrand's postulate"
