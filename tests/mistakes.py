"""Networks and data of users who make mistakes."""

# ruff: noqa: ARG001, ARG002

from __future__ import annotations

import torch
from torch import nn

NOT_A_FUNCTION = 3


def sequential(input, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))


def nothing(input, classes):
    return None


def one_block(input, classes):
    return [nn.Flatten()]


def strings(input, classes):
    return ["conv1", "out"]


def bad_name(input, classes):
    return [("conv 1", nn.Flatten()), ("out", nn.Linear(64, classes))]


def twins(input, classes):
    return [("fc", nn.Flatten()), ("fc", nn.Linear(64, classes))]


def too_many_classes(input, classes):
    return [("flat", nn.Flatten()), ("out", nn.Linear(64, classes + 1))]


def no_batch_dimension(input, classes):
    return [("flat", nn.Flatten(0)), ("out", nn.Linear(128, classes))]


def wrong_width(input, classes):
    return [("flat", nn.Flatten()), ("out", nn.Linear(65, classes))]


def in_place(input, classes):
    return [
        ("fc", nn.Sequential(nn.Flatten(), nn.Linear(64, 16))),
        ("relu", nn.ReLU(inplace=True)),
        ("out", nn.Linear(16, classes)),
    ]


def integers_at_the_cut(input, classes):
    return [
        ("ids", _Integers()),
        ("embed", nn.Embedding(256, 4)),
        ("flat", nn.Flatten()),
        ("out", nn.Linear(256, classes)),
    ]


def two_tensors_at_the_cut(input, classes):
    return [("flat", nn.Flatten()), ("two", _Two()), ("one", _Sum()), ("out", nn.Linear(64, classes))]


def raises_in_forward(input, classes):
    return [("flat", nn.Flatten()), ("bad", _Raises()), ("out", nn.Linear(64, classes))]


def takes_nothing():
    return [nn.Flatten(), nn.Linear(64, 10)]


def not_data(root):
    return torch.zeros(3)


class _Integers(nn.Module):
    def forward(self, x):
        return x.flatten(1).long()


class _Two(nn.Module):
    def forward(self, x):
        return x, 2 * x


class _Sum(nn.Module):
    def forward(self, pair):
        return pair[0] + pair[1]


class _Raises(nn.Module):
    def forward(self, x):
        raise ValueError("a mistake in forward")
