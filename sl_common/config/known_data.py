"""Data sets that ship with the client, as the server needs to know them."""

from __future__ import annotations

from typing import NamedTuple


class KnownData(NamedTuple):
    """A data set that ships with the client.

    The server takes the head's shape from it, and the most samples that a client can have.
    """

    input: tuple[int, ...]  # shape of one sample
    classes: int
    train: int  # samples
    test: int  # samples
    labels: tuple[int, ...]  # training samples of each class


KNOWN_DATA: dict[str, KnownData] = {
    "digits": KnownData((1, 8, 8), 10, 1_438, 359, (151, 161, 143, 131, 147, 154, 150, 136, 127, 138)),
    "fashion-mnist": KnownData((1, 28, 28), 10, 60_000, 10_000, (6_000,) * 10),
    "cifar10": KnownData((3, 32, 32), 10, 50_000, 10_000, (5_000,) * 10),
    "cifar100": KnownData((3, 32, 32), 100, 50_000, 10_000, (500,) * 100),
}
