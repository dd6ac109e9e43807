"""Every preset has an example that a newcomer can run as it is."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from sl_common.config.presets import PRESETS
from sl_common.config.run_config import RunConfig
from sl_common.network.network import Network

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_has_a_commented_example(preset: str) -> None:
    path = EXAMPLES / f"{preset}.toml"
    text = path.read_text()
    config = RunConfig.from_toml(text)
    assert text.startswith("# ")
    assert tomllib.loads(text)["protocol"]["preset"] == config.preset == preset
    assert (config.run.clients, config.data.name, config.model.name) == (10, "fashion-mnist", "cnn")
    assert config.cautions == []
    Network.build(config)
