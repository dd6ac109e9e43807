"""Checks of a configuration for whatever would end a run, or a client's part in it: in `check`, and before a run.

For the data sets that ship, the samples of each client are known without their files. For a client's own data they are
not: there the client checks its data when it takes its place, and the server checks the numbers of its Ready.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from sl_common.config.known_data import KNOWN_DATA, KnownData
from sl_common.config.run_config import RunConfig
from sl_common.errors import ConfigError
from sl_common.network.network import Network
from sl_common.partition import OwnData, Partition
from sl_server.core.claims import sends_nothing
from sl_server.core.practice import practise
from sl_server.core.singles import Singles, drawn_together


def preflight(config: RunConfig, network: Network) -> None:
    """Raise ConfigError, naming the key, if this run cannot work."""
    singles = Singles(config, network)
    singles.check_memory()
    steps = config.client.wave.steps
    if steps is not None and (why := sends_nothing(config, steps)):
        raise ConfigError(f"client.wave.steps = {steps}: every client {why}")
    known = KNOWN_DATA.get(config.data.name)
    singles.check_evaluation(None if known is None else known.test // config.run.clients)
    practise(config, network)
    if known is None:
        return
    _check_shape(config, known)
    sizes = shard_sizes(config)
    for shard, size in enumerate(sizes):
        _check_size(config, shard, size)
    used = {shard: config.deal(size).used for shard, size in enumerate(sizes)}
    for shard, samples in used.items():
        singles.check_client(_who(config, shard), samples)
    for shard in singles.lone(used, drawn_together(config, len(used))):
        singles.check_head(_who(config, shard), used[shard])


def shard_sizes(config: RunConfig) -> list[int]:
    """Return the training samples of each client that the run begins with, for data that ship.

    Raises ConfigError if there are too few for them.
    """
    known = KNOWN_DATA[config.data.name]
    shards = 1 if isinstance(config.data.partition, OwnData) else config.shards
    sizes = _sizes(config.data.partition, known.labels, shards, config.run.seed)
    return (
        [sizes[0]] * config.run.clients if isinstance(config.data.partition, OwnData) else sizes[: config.run.clients]
    )


@lru_cache(maxsize=8)
def _sizes(partition: Partition, labels: tuple[int, ...], shards: int, seed: int) -> list[int]:
    """Split by the number of samples of each class: sizes depend on nothing else."""
    parts = partition.split(np.repeat(np.arange(len(labels), dtype=np.int64), labels), shards, seed)
    return [len(part) for part in parts]


def most_in_batch(config: RunConfig) -> int:
    """Return the samples of the largest batch of any client, which may be fewer than `data.batch_size`."""
    if config.data.name not in KNOWN_DATA:
        return min(config.largest_batch, config.data.max_samples or config.largest_batch)
    return max(config.deal(size).largest for size in shard_sizes(config)) or config.largest_batch


def _check_shape(config: RunConfig, known: KnownData) -> None:
    name = f"data.name = {config.data.name!r}"
    if config.input != known.input:
        raise ConfigError(f"model.input = {list(config.input)}: samples of {name} have shape {list(known.input)}")
    if config.classes != known.classes:
        raise ConfigError(f"model.classes = {config.classes}: {name} has {known.classes} classes")


def _check_size(config: RunConfig, shard: int, size: int) -> None:
    data, deal = config.data, config.deal(size)
    if data.max_samples is not None and deal.used > data.max_samples:
        raise ConfigError(
            f"data.max_samples = {data.max_samples}: {_who(config, shard)} has {deal.used} training samples "
            f"of data.name = {data.name!r}"
        )
    if not deal.batches:
        raise ConfigError(
            f"data.batch_size = {deal.batch_size}: {_who(config, shard)} has {size} training samples, "
            "and without the last, smaller batch "
            "(data.last_batch = 'drop', or protocol.head.scatter.unequal = 'error') there is none"
        )
    if why := sends_nothing(config, deal.batches):
        raise ConfigError(f"{_who(config, shard)} {why}")


def _who(config: RunConfig, shard: int) -> str:
    return f"client 'c{shard}' (shard {shard + 1} of {config.shards})"
