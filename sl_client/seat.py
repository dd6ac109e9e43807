"""A client takes its place: the server's configuration checked against what this device allows, then segments and data."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from pathlib import Path

from sl_client.data import load
from sl_client.data.loader import make_loader
from sl_common.config import RunConfig
from sl_common.messages import Welcome
from sl_common.network import Network
from sl_common.participate import Seat
from sl_common.segment import Bank, Segment, Span, no_span
from sl_common.snapshots import Snapshots


def take_seat(
    welcome: Welcome,
    *,
    data: Path | None,
    allowed: Collection[str] | None,
    span: Span = no_span,
    snapshots: Snapshots | None = None,
) -> Seat:
    """Build what a client needs for its part in the run.

    `data` is where data sets lie; `allowed` the packages that code of the user's may come from (None: any); `snapshots`
    what a former life of this client has left. Raises ConfigError or DataError naming the key, file or field.
    """
    config = RunConfig.from_json(welcome.config)
    mine = load(config.data.name, data, allowed)
    mine.check(config.input, config.classes)
    loader = make_loader(
        mine,
        config.data.partition,
        welcome.shards,
        welcome.shard,
        config.data.batch_size,
        config.run.seed,
        drop_last=config.protocol.head.scatter.equal_batches,
        augment=config.data.augment,
    )
    network = Network.build(config, allowed, shard=welcome.shard)

    def make(part: str) -> Callable[[], Segment]:
        optimizer = config.client.aux_optimizer if part == "aux" else None
        return lambda: Segment(copy.deepcopy(network.part(part)), optimizer or config.client.optimizer, span=span)

    bank = Bank({part: make(part) for part in config.protocol.learner.parts})
    return Seat(
        config=config,
        shard=welcome.shard,
        bank=bank,
        data=loader,
        limit_bytes=network.limit_bytes,
        snapshots=snapshots or Snapshots(welcome.run),
    )
