"""Choose whether a simulation is stacked: as the option says, or by a short trial of both ways."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Literal

from sl_common.config.run_config import RunConfig
from sl_common.config.sections import WaveConfig
from sl_common.errors import ConfigError
from sl_common.messages.facts import Fact, Trained
from sl_common.network.network import Network
from sl_server.simulation.simulation import Count, Simulation
from sl_server.simulation.vectorized.eligibility import reason_against
from sl_server.simulation.vectorized.simulation import Stacked

OTHER_BITS = "stacked: the last bits of the weights may differ from those of real processes"
_WORTH_IT = 1.1  # times as fast; a smaller gain is not worth different bits
_CLIENTS, _PAIRS, _TRIAL_S = 32, 5, 5.0  # limits of the trial; with more clients the gain is larger still

StackedOption = Literal["off", "auto", "on"]


def simulation_of(
    config: RunConfig, asked: StackedOption, *, data: Path | None, device: str, client_device: str, count: Count
) -> tuple[Simulation, str | None]:
    """Return the simulation, and a remark on the choice for its user. Raises ConfigError if it must be stacked and
    cannot be."""
    if asked == "off":
        return Simulation(config, data=data, device=device, client_device=client_device, count=count), None
    reason = reason_against(config, Network.build(config))
    if reason is not None and asked == "on":
        raise ConfigError(f"--stacked on: {reason}")
    if reason is None and asked == "auto" and (gain := measured_gain(config, data, device, client_device)) < _WORTH_IT:
        reason = f"in a short trial it was {gain:.2f} times as fast"
    if reason is not None:
        return Simulation(
            config, data=data, device=device, client_device=client_device, count=count
        ), f"not stacked: {reason}"
    return Stacked(config, data=data, device=device, client_device=client_device, count=count), OTHER_BITS


def measured_gain(
    config: RunConfig, data: Path | None = None, device: str = "cpu", client_device: str = "cpu"
) -> float:
    """Return the speed-up of stacking for the first clients of this run: the median of pairs, one step each in turn."""
    clients = min(config.run.clients, _CLIENTS)
    short = config.model_copy(
        update={
            "run": config.run.model_copy(update={"clients": clients}),
            "data": config.data.model_copy(update={"shards": config.shards}),  # batches are those of the whole run
            "client": config.client.model_copy(update={"wave": WaveConfig(steps=clients * (_PAIRS + 2))}),
        }
    )
    plain, stacked = (
        kind(short, data=data, device=device, client_device=client_device).facts() for kind in (Simulation, Stacked)
    )
    for facts in (plain, stacked):  # clients join, and torch warms up
        seconds_of(facts, clients)
    until, gains = time.perf_counter() + _TRIAL_S, list[float]()
    while len(gains) < _PAIRS and not (gains and time.perf_counter() > until):
        gains.append(seconds_of(plain, clients) / seconds_of(stacked, clients))
    return statistics.median(gains)


def seconds_of(facts: Iterator[Fact], batches: int) -> float:
    """Return the seconds that a simulation takes to train on so many more batches."""
    began = time.perf_counter()
    for _ in islice((fact for fact in facts if isinstance(fact, Trained)), batches):
        pass
    return time.perf_counter() - began
