"""What all benchmarks stand on: the images that they train on, and the ways in which a bare program picks and computes."""

from __future__ import annotations

from benchmarks.data import HELD_OUT, images, what
from benchmarks.workloads import WORKLOADS


def test_the_images_are_there() -> None:
    data = images()
    data.check((1, 28, 28), 10)
    assert [len(data.train[0]), len(data.tests()[1])] == [60_000, HELD_OUT]
    assert what()


def test_workloads_have_a_name_each() -> None:
    assert all(name == one.name for name, one in WORKLOADS.items())
