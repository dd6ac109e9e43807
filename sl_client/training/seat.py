"""A client takes its place: the server's configuration checked against what this device allows, then segments and data."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
from torch import nn

from sl_client.data import Data, load_data
from sl_client.data.identity import data_set_of, looked_at
from sl_client.data.loader import Loader, make_loader, share
from sl_client.device.limits import NO_LIMITS, DeviceLimits
from sl_common.client.seat import Seat
from sl_common.client.snapshots import Snapshots
from sl_common.config.run_config import RunConfig
from sl_common.errors import DataError
from sl_common.holdings import DataSet
from sl_common.imports import is_user_code
from sl_common.messages.training import Welcome
from sl_common.network.builds import builds_of
from sl_common.network.network import Network
from sl_common.partition import Indices, Labels
from sl_common.training.bank import Bank
from sl_common.training.segment import Segment, SpanFactory, no_span


def take_seat(
    welcome: Welcome,
    *,
    data: Path | None,
    allowed: Collection[str] | None,
    span: SpanFactory = no_span,
    snapshots: Snapshots | None = None,
    limits: DeviceLimits = NO_LIMITS,
    sole: bool = False,
    device: str = "cpu",
) -> Seat:
    """Build what a client needs for its part in the run.

    `data` is where data sets lie; `allowed` the packages that code of the user's may come from (None: any); `snapshots`
    what a former life of this client has left; `limits` what the device's owner allows; with `sole`, no other client
    of this process needs the same data, and only this one's samples are kept. Raises ConfigError or DataError naming the key, file or field.
    """
    config = RunConfig.from_json(welcome.config)
    loader, data_set = _batches(config, welcome, data, allowed, sole=sole)
    modules, network = _modules(config, welcome, allowed, limits)

    def make(part: str) -> Callable[[], Segment]:
        optimizer = config.client.aux_optimizer if part == "aux" else None
        return lambda: Segment(modules[part], optimizer or config.client.optimizer, span=span, device=device)

    return Seat(
        config=config,
        shard=welcome.shard,
        bank=Bank({part: make(part) for part in modules}),
        data=loader,
        limit_bytes=network.limit_bytes,
        limit_tensors=network.limit_tensors,
        snapshots=snapshots or Snapshots(welcome.run),
        data_set=data_set,
        builds=builds_of(config, network, modules, nullcontext()),
    )


def _check(data: Data, config: RunConfig) -> None:
    """Raise DataError unless this run can train on them."""
    try:
        data.check(config.input, config.classes)
    except DataError as error:
        if not is_user_code(config.data.name):
            raise
        raise DataError(
            f"data.name = {config.data.name!r} returned data that this run cannot train on: {error}"
        ) from error


def _batches(
    config: RunConfig, welcome: Welcome, data: Path | None, allowed: Collection[str] | None, *, sole: bool
) -> tuple[Loader, DataSet]:
    """Of this client's shard, and what the whole set is."""
    whole: list[Labels] = []  # if the set is reduced while it is read

    def mine(labels: Labels) -> Indices:
        return share(config.data.partition, labels, welcome.shards, welcome.shard, config.run.seed)

    def pick(labels: Labels) -> Indices:
        whole.append(labels)
        return np.union1d(mine(labels), looked_at(labels))

    found = load_data(config.data.name, data, allowed, pick if sole else None)
    _check(found, config)
    labels = found.train[1].numpy() if found.held is None else whole[0]
    data_set = data_set_of(found, labels, own=not config.sharded)
    indices = mine(labels)
    if sole and found.held is None:
        found = found.only(indices)
    loader = make_loader(
        found,
        config.data.partition,
        welcome.shards,
        welcome.shard,
        config.data.batch_size,
        config.run.seed,
        last=config.deal(0).last,
        augment=config.data.augment,
        indices=indices,
    )
    return loader, data_set


def _modules(
    config: RunConfig, welcome: Welcome, allowed: Collection[str] | None, limits: DeviceLimits
) -> tuple[dict[str, nn.Module], Network]:
    """The parts that this client holds, if they fit, and the network, which without the rest still knows the run's largest message."""
    limits.check(config)
    parts = config.protocol.learner.parts
    network = Network.build(
        config, allowed, shard=welcome.shard, parts=parts, fits=partial(limits.check_auxiliary, config)
    )
    limits.check_built(config, network)
    return {part: network.part(part) for part in parts}, network
