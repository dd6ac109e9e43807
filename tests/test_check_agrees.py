"""Law: `check` says yes exactly where a run begins and ends without anything being wrong with its configuration.

Configurations are drawn. What `check` accepts is simulated; what it refuses is run without being checked before, and must fail there.
CUTLAYER_DRAWS=N, and CUTLAYER_SEED for others, draws more of them.
"""

from __future__ import annotations

import os
import random
import sys

import drawn_runs
import numpy as np
import pytest
from drawn_runs import drawn
from world import run_world

from sl_client.data import load_data
from sl_common.config.known_data import KNOWN_DATA
from sl_common.config.run_config import RunConfig
from sl_common.errors import ConfigError, CutlayerError, Diverged
from sl_common.partition import Dirichlet, Iid, Shards
from sl_server.core.preflight import shard_sizes
from sl_server.preflight.check import inspect
from sl_server.simulation.simulation import Simulation

DRAWS, SEED = int(os.environ.get("CUTLAYER_DRAWS", "64")), int(os.environ.get("CUTLAYER_SEED", "1"))


@pytest.fixture(autouse=True)
def _networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cutlayer_nets", drawn_runs)


def checked(config: RunConfig) -> str:
    """Why `check` refuses it; empty if it does not."""
    try:
        inspect(config)
    except ConfigError as error:
        return str(error)
    return ""


def simulated(config: RunConfig) -> str:
    """Why a simulation of it does not come to its end; empty if it does, or if its numbers diverge, which no configuration tells."""
    try:
        simulation = Simulation(config)
        simulation.run()
    except Diverged:
        return ""
    except CutlayerError as error:
        return f"{type(error).__name__}: {error}"
    ended = simulation.coordinator.ended
    return "" if ended is not None and ended.finished else "does not end"


def unchecked(config: RunConfig) -> str:
    """The same of a federation in memory that nothing is checked of beforehand."""
    try:
        world = run_world(config)
    except Exception as error:  # whatever a run that should not have begun comes to
        return f"{type(error).__name__}: {error}"
    ended = world.coordinator.ended
    return "" if ended is not None and ended.finished and not world.expelled else "does not end"


@pytest.mark.parametrize("draw", range(DRAWS))
@pytest.mark.filterwarnings("ignore")
def test_check_says_yes_where_a_run_begins(draw: int) -> None:
    source = random.Random(SEED * 1_000_003 + draw)
    lines, config = drawn(source)
    while config is None:
        lines, config = drawn(source)
    refusal = checked(config)
    failure = unchecked(config) if refusal else simulated(config)
    assert bool(refusal) == bool(failure), f"check: {refusal or 'yes'}\nrun: {failure or 'ends'}\n" + "\n".join(lines)


@pytest.mark.parametrize("partition", [Iid(), Dirichlet(alpha=0.2), Dirichlet(alpha=3.0, min_samples=9), Shards()])
@pytest.mark.parametrize("name", ["digits", "cifar10"])
def test_sizes_are_known_without_the_data(partition: Iid | Dirichlet | Shards, name: str) -> None:
    known = KNOWN_DATA[name]
    if name == "digits":
        labels = load_data(name, None, None).train[1].numpy()
        assert tuple(np.bincount(labels).tolist()) == known.labels
    else:
        labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), known.labels))
    config = RunConfig.from_toml(f"run.clients = 7\nrun.seed = 3\ndata.name = '{name}'\nmodel.name = 'mlp'")
    config = config.model_copy(update={"data": config.data.model_copy(update={"partition": partition})})
    assert shard_sizes(config) == [len(part) for part in partition.split(labels, 7, 3)]


def test_all_sets_that_ship_have_as_many_labels_as_samples() -> None:
    for known in KNOWN_DATA.values():
        assert (sum(known.labels), len(known.labels)) == (known.train, known.classes)
