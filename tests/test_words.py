"""Networks that look numbers up: `check`, the simulator and `codecs` run them, or say what they do not take."""

from __future__ import annotations

import pytest

from sl_common.config.run_config import RunConfig
from sl_common.errors import ConfigError
from sl_server.preflight.check import inspect
from sl_server.preflight.codecs import compare
from sl_server.simulation.simulation import Simulation

TOML = """
run = { rounds = 1, clients = 2 }
model = { name = "words:network", cut = 1, input = [6], classes = 3 }
data = { name = "words:floats", batch_size = 16, max_samples = 200 }
"""


@pytest.mark.parametrize("codec", ["identity", "float8", "topk"])
def test_such_a_network_is_checked_and_runs(codec: str) -> None:
    config = RunConfig.from_toml(TOML, [f"codec.up={codec}"])
    cuts = inspect(config).cuts
    assert [(cut.after, cut.shape) for cut in cuts] == [("look", (6, 8)), ("mean", (8,))]
    simulation = Simulation(config)
    simulation.run()
    assert simulation.coordinator.ended is not None
    assert simulation.coordinator.ended.finished
    assert compare(config, on="gradient", data=None).shape == (16, 6, 8)


def test_a_network_that_does_not_cast_is_told_to() -> None:
    config = RunConfig.from_toml(TOML, ["model.args.cast=false"])
    for run in (inspect, Simulation):
        with pytest.raises(
            ConfigError, match=r"words:network.*samples come as float32: .* casts them itself \(x.long\(\)\)"
        ):
            run(config)


def test_integers_become_the_floats_that_hold_them_exactly() -> None:
    shas = set()
    for name in ("integers", "floats"):
        config = RunConfig.from_toml(TOML, [f"data.name=words:{name}"])
        assert inspect(config).chosen == 1
        simulation = Simulation(config)
        simulation.run()
        shas.add(simulation.coordinator.weights_sha256())
    assert len(shas) == 1


def test_a_network_that_runs_on_two_samples_alone_is_refused_in_words() -> None:
    config = RunConfig.from_toml(TOML, ["model.name=words:pairs"])
    for run in (inspect, Simulation):
        with pytest.raises(ConfigError, match=r"words:pairs' .*fails in training \(batches of 2 and 4 samples\)"):
            run(config)


def test_a_head_that_changes_in_place_what_was_sent_is_told_the_ways_out() -> None:
    for cut, works in (("low", False), ("relu", True)):
        config = RunConfig.from_toml(TOML, ["model.name=words:in_place", f"model.cut={cut}"])
        if works:
            assert inspect(config).chosen == 2
            continue
        for run in (inspect, Simulation):
            with pytest.raises(ConfigError, match=r"cut at 'low' .*in place.*\(inplace=False\), or cut after it"):
                run(config)
