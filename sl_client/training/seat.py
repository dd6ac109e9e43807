"""The seat of a client: checks a configuration against this device's limits, then builds segments and data."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
from torch import nn

from sl_client.data import Data, load_data
from sl_client.data.identity import data_set_of, sampled_rows
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

    `data`: folder of data sets; `allowed`: packages that the user's code may come from (None: any); `snapshots`: those
    that an earlier session of this client left; `limits`: those of the device's owner; `sole`: no other client of this
    process needs the same data, so that only this one's samples are kept. Raises ConfigError or DataError that names
    the key, file or field.
    """
    config = RunConfig.from_json(welcome.config)
    loader, data_set = _load(config, welcome, data, allowed, sole=sole)
    modules, network = _build_parts(config, welcome, allowed, limits)

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
    """Raise DataError unless this run can train on the data."""
    try:
        data.check(config.input, config.classes)
    except DataError as error:
        if not is_user_code(config.data.name):
            raise
        raise DataError(
            f"data.name = {config.data.name!r} returned data that this run cannot train on: {error}"
        ) from error


def _load(
    config: RunConfig, welcome: Welcome, data: Path | None, allowed: Collection[str] | None, *, sole: bool
) -> tuple[Loader, DataSet]:
    """Return the loader of this client's shard, and the description of the whole data set."""
    whole: list[Labels] = []  # filled if only some samples are kept when the set is read

    def own_rows(labels: Labels) -> Indices:
        return share(config.data.partition, labels, welcome.shards, welcome.shard, config.run.seed)

    def pick(labels: Labels) -> Indices:
        whole.append(labels)
        return np.union1d(own_rows(labels), sampled_rows(labels))

    found = load_data(config.data.name, data, allowed, pick if sole else None)
    _check(found, config)
    labels = found.train[1].numpy() if found.held is None else whole[0]
    data_set = data_set_of(found, labels, own=not config.sharded)
    indices = own_rows(labels)
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


def _build_parts(
    config: RunConfig, welcome: Welcome, allowed: Collection[str] | None, limits: DeviceLimits
) -> tuple[dict[str, nn.Module], Network]:
    """Build the parts that this client holds, if they fit in memory.

    The network without the other parts knows the run's limits.
    """
    limits.check(config)
    parts = config.protocol.learner.parts
    network = Network.build(
        config, allowed, shard=welcome.shard, parts=parts, fits=partial(limits.check_auxiliary, config)
    )
    limits.check_built(config, network)
    return {part: network.part(part) for part in parts}, network
