"""A network and data of your own: copy this file, change the two functions, name them in a TOML file (own_network.toml).

sl-server simulate examples/own_network.toml           # try it out in one process
sl-server check examples/own_network.toml              # every cut with its shapes, bytes and memory
sl-server run examples/own_network.toml                # the real thing: a server, and on each of three devices
sl-client run --server HOST:PORT --allow examples      # a client that lets this package be imported

This file must lie on the server and on every client, in the folder where the command is started or anywhere else on the Python
path: only names and weights travel, never code.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from torch import nn

from sl_client.data import Data
from sl_common.errors import DataError


def network(
    input: Sequence[int],
    classes: int,
    width: int = 16,
    dropout: float = 0.2,
) -> list[tuple[str, nn.Module]]:
    """A small depthwise-separable network for images of 8x8 and more.

    `input` is the shape of one sample, here (1, 8, 8), and `classes` the number of classes; both come from the run's
    configuration. Whatever else the function takes comes from `[model] args` there. It returns the network as a list of
    (name, module) in the order in which data pass through them. The run's `cut` says after which of them the network is cut:
    the blocks up to it train on the clients, the others on the server.

    Just one thing to watch: the first layer after the cut must not work in place (`nn.ReLU(inplace=True)`), because what
    it would overwrite is what the client sent.
    """
    channels = input[0]
    return [
        ("stem", nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())),
        ("sep1", separable(width, 2 * width)),
        ("sep2", separable(2 * width, 4 * width)),
        ("pool", nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(dropout))),
        ("out", nn.Linear(4 * width * 4, classes)),  # logits: the loss is cross-entropy
    ]


def separable(inputs: int, outputs: int) -> nn.Module:
    """Each channel is filtered by itself, then all are mixed point by point; the image shrinks to half its size."""
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )


def data(root: Path | None) -> Data:
    """Handwritten digits from a file of images and labels; the last quarter is held out.

    `root` is the folder that a client was given with `--data`; None if it was given none. Every client of a run calls this
    function. With `partition = { kind = "iid" }` (or dirichlet, shards) each of them must load the same set and trains on its
    own part of it; with `{ kind = "own" }` each loads what only it has. Raise DataError for what the device's owner can mend:
    the client ends with these words, and the server is told.
    """
    file = (root or Path(str(files("sl_client.data")))) / "digits.npz"
    if not file.exists():
        raise DataError(f"{file}: no such file; name its folder with --data")
    with np.load(file, allow_pickle=False) as arrays:
        x = torch.from_numpy(arrays["images"])  # (N, 1, 8, 8) uint8; float32 works too
        y = torch.from_numpy(arrays["labels"]).long()  # (N,) int64, 0 to classes - 1
    train = len(y) * 3 // 4
    return Data(
        train=(x[:train], y[:train]),
        test=(x[train:], y[train:]),
        mean=0.31,  # of the images scaled to 0…1: one number, or one for each channel
        std=0.38,
        classes=10,
    )
