"""Laws of every partition in the union, then what each of them is for."""

from __future__ import annotations

import numpy as np
import pytest
from drawn import LAW
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from sl_common.errors import ConfigError
from sl_common.partition import Dirichlet, Iid, OwnData, Partition, Shards

DEALT = [
    Iid(),
    Dirichlet(alpha=0.1),
    Dirichlet(alpha=0.5, min_samples=7),
    Dirichlet(alpha=100.0),
    Shards(),
    Shards(per_client=1),
]
ALL = [*DEALT, OwnData()]
LABELS = np.random.default_rng(0).integers(0, 10, 400)


@pytest.mark.parametrize("partition", ALL, ids=repr)
@pytest.mark.parametrize("shards", [1, 3, 40])
def test_all_samples_are_dealt_in_sorted_int64(partition: Partition, shards: int) -> None:
    parts = partition.split(LABELS, shards, seed=1)
    assert len(parts) == shards
    assert all(part.dtype == np.int64 and (np.diff(part) > 0).all() and len(part) >= 1 for part in parts)
    assert np.array_equal(np.unique(np.concatenate(parts)), np.arange(len(LABELS)))


@pytest.mark.parametrize("partition", DEALT, ids=repr)
@pytest.mark.parametrize("shards", [1, 3, 40])
def test_no_sample_is_dealt_twice(partition: Partition, shards: int) -> None:
    assert sum(len(part) for part in partition.split(LABELS, shards, seed=1)) == len(LABELS)


@pytest.mark.parametrize("partition", ALL, ids=repr)
def test_equal_arguments_give_equal_parts(partition: Partition) -> None:
    again = partition.split(LABELS.copy(), 5, seed=1)
    assert all(map(np.array_equal, partition.split(LABELS, 5, seed=1), again))


@pytest.mark.parametrize("partition", DEALT, ids=repr)
def test_another_seed_deals_otherwise(partition: Partition) -> None:
    assert not all(map(np.array_equal, partition.split(LABELS, 5, seed=1), partition.split(LABELS, 5, seed=2)))


@pytest.mark.parametrize("partition", ALL, ids=repr)
def test_a_config_survives_json(partition: Partition) -> None:
    union: TypeAdapter[Partition] = TypeAdapter(Partition)
    assert union.validate_json(partition.model_dump_json()) == partition


@pytest.mark.parametrize("partition", DEALT, ids=repr)
def test_more_shards_than_samples_is_refused_with_both_numbers(partition: Partition) -> None:
    with pytest.raises(ConfigError, match=r"401 shards need \d+ samples .*, the training set has 400"):
        partition.split(LABELS, 401, seed=1)


@pytest.mark.parametrize("partition", ALL, ids=repr)
def test_no_shards_and_no_samples_are_refused(partition: Partition) -> None:
    with pytest.raises(ConfigError, match="0 shards"):
        partition.split(LABELS, 0, seed=1)
    with pytest.raises(ConfigError, match="has 0"):
        partition.split(LABELS[:0], 1, seed=1)


@LAW
@given(st.integers(1, 60), st.integers(1, 60))
def test_iid_sizes_differ_by_one_at_most(samples: int, shards: int) -> None:
    shards = min(shards, samples)
    sizes = [len(part) for part in Iid().split(np.zeros(samples, dtype=np.int64), shards, seed=1)]
    assert max(sizes) - min(sizes) <= 1


@LAW
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    shards=st.integers(1, 60),
    alpha=st.floats(5e-324, 1e6),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_dirichlet_gives_everyone_the_least_whatever_the_draw(
    labels: list[int], shards: int, alpha: float, share: float, seed: int
) -> None:
    shards = min(shards, len(labels))
    least = max(1, int(share * (len(labels) // shards)))
    parts = Dirichlet(alpha=alpha, min_samples=least).split(np.array(labels), shards, seed)
    assert min(map(len, parts)) >= least
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))


def test_dirichlet_says_when_the_least_is_too_much() -> None:
    with pytest.raises(ConfigError, match=r"5 shards need 405 samples \(min_samples = 81 .*has 400"):
        Dirichlet(alpha=1.0, min_samples=81).split(LABELS, 5, seed=1)


def test_dirichlet_skew_grows_as_alpha_falls() -> None:
    def skew(alpha: float) -> float:
        """Mean share of a shard's commonest label: 0.1 if all are alike, 1 if everyone has one label."""
        parts = [part for seed in range(5) for part in Dirichlet(alpha=alpha).split(LABELS, 5, seed)]
        return float(np.mean([np.bincount(LABELS[part]).max() / len(part) for part in parts]))

    falling = [skew(alpha) for alpha in (1000.0, 1.0, 0.1, 0.01)]
    assert falling == sorted(falling)
    assert falling[-1] > 2 * falling[0]


@pytest.mark.parametrize("alpha", [0.0, -1.0, 1e308, float("nan"), float("inf")])
def test_dirichlet_refuses_an_alpha_it_cannot_draw_with(alpha: float) -> None:
    with pytest.raises(ValidationError, match="alpha"):
        Dirichlet(alpha=alpha)


@pytest.mark.parametrize("per_client", [1, 2, 4])
def test_shards_have_few_labels(per_client: int) -> None:
    even = np.repeat(np.arange(10), 40)  # 20 pieces, of one label each, when two for each of ten shards
    for part in Shards(per_client=per_client).split(even, 10, seed=1):
        assert len(part) == 40
        assert len(np.unique(even[part])) <= per_client
    for part in Shards(per_client=per_client).split(LABELS, 20, seed=1):  # a piece may straddle two labels
        assert len(np.unique(LABELS[part])) <= 2 * per_client


def test_shards_count_their_pieces() -> None:
    with pytest.raises(ConfigError, match=r"101 shards need 404 samples .*per_client = 4.* has 400"):
        Shards(per_client=4).split(LABELS, 101, seed=1)


def test_own_gives_everything_to_everyone() -> None:
    assert all(np.array_equal(part, np.arange(400)) for part in OwnData().split(LABELS, 3, seed=1))


def test_the_draws_stay_as_they_are() -> None:
    """Golden: clients compute the parts alone, so a draw that changed between versions would deal a sample twice."""
    labels = np.arange(12) % 3
    golden: dict[Partition, list[list[int]]] = {
        Iid(): [[1, 3, 8, 11], [5, 6, 9, 10], [0, 2, 4, 7]],
        Dirichlet(alpha=0.5): [[11], [2, 5, 8], [0, 1, 3, 4, 6, 7, 9, 10]],
        Shards(): [[1, 4, 6, 9], [2, 5, 7, 10], [0, 3, 8, 11]],
    }
    for partition, parts in golden.items():
        assert [part.tolist() for part in partition.split(labels, 3, seed=7)] == parts
