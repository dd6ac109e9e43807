"""What all benchmarks stand on: the images that they train on, and the ways in which a bare program picks and computes."""

from __future__ import annotations

import pytest
import torch

from benchmarks import data, sides
from benchmarks.bandwidth import CODECS
from benchmarks.data import HELD_OUT, images, what
from benchmarks.step import RESULTS
from benchmarks.targets import PAGE, TARGETS, Target, page, value
from benchmarks.workloads import WORKLOADS, Workload, chosen
from sl_common.config import RunConfig


def test_the_images_are_there() -> None:
    data = images()
    data.check((1, 28, 28), 10)
    assert [len(data.train[0]), len(data.tests()[1])] == [60_000, HELD_OUT]
    assert what()


def test_workloads_have_a_name_each() -> None:
    assert all(name == one.name for name, one in WORKLOADS.items())


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=list(WORKLOADS))
def test_a_workload_is_cut_where_it_says(workload: Workload) -> None:
    """And its data fits it."""
    getattr(data, workload.data)().check(workload.input, 10)
    lower, head = workload.segments()
    z = lower(torch.zeros(2, *workload.input))
    assert z.shape == (2, *workload.cut)
    assert head(z).shape == (2, 10)


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=list(WORKLOADS))
@pytest.mark.parametrize("codec", CODECS)
def test_our_side_s_configuration_is_one(workload: Workload, codec: str) -> None:
    config = RunConfig.from_toml(sides.config(workload, 3) + CODECS[codec])
    assert config.codec.up.kind == codec


def test_all_workloads_means_the_usual_ones() -> None:
    assert [w.name for w in chosen("all")] == ["mlp", "cnn"]
    assert [w.name for w in chosen("wide")] == ["wide"]


def test_coloured_images_are_the_grey_ones() -> None:
    grey, coloured = images(), data.coloured()
    coloured.check((3, 32, 32), 10)
    x = coloured.train[0][:5]
    assert all(torch.equal(x[:, colour, 2:-2, 2:-2], grey.train[0][:5, 0]) for colour in range(3))
    assert not x[:, :, :2].any()


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.what)
def test_every_target_finds_its_number_in_the_committed_page(target: Target) -> None:
    there = (RESULTS / f"{target.page}.json").exists()
    assert (value(target, RESULTS) is not None) == there, "the table calls what has no page not measured"


def test_the_committed_table_is_of_the_committed_pages() -> None:
    assert PAGE.read_text() == page(), "make bench-table"
