"""Which device each side computes on: chosen by one rule, said by both, and refused by name where it is not there.

Tests see no GPU (conftest.py): what torch says of one is made up where the choice alone is tested.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from processes import ran, started

from sl_client.device.limits import device_for
from sl_client.training.seat import take_seat
from sl_common.config.run_config import RunConfig
from sl_common.errors import ConfigError
from sl_common.host.devices import described, pick_device, what_is_there
from sl_common.messages.training import Welcome
from sl_server.preflight.check import inspect
from sl_server.simulation.simulation import Simulation
from sl_server.telemetry.ledger import Ledger
from sl_server.telemetry.metrics import Metrics

SMALL = """
[run]
name = "small"
rounds = 1
[client]
wave = { steps = 2 }
[model]
name = "mlp"
"""


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU of {device}")


def test_both_sides_take_a_gpu_if_there_is_one_by_default() -> None:
    config = RunConfig.from_toml("")
    assert (config.server.device, config.client.device) == ("auto", "auto")


@pytest.mark.parametrize(
    "device", ["gpu", "mps", "7", "cuda:", "cuda:-1", "cuda:x", "cuda:²", "CUDA", "", "meta", "cuda:9999"]
)
def test_a_name_that_is_none_is_refused_with_those_that_are(device: str) -> None:
    for key in ("server.device", "client.device"):
        with pytest.raises(ConfigError, match=f"{key} = '{device}': must be auto, cpu, cuda or cuda:N"):
            RunConfig.from_toml(f'{key} = "{device}"')
    with pytest.raises(ConfigError, match=f"--device = '{device}': must be auto, .*; torch .* sees cpu"):
        pick_device(device, "--device")


def test_without_a_gpu_auto_is_the_cpu_and_a_named_one_is_refused() -> None:
    assert pick_device("auto", "server.device") == "cpu"
    for device in ("cuda", "cuda:0", "cuda:7"):
        with pytest.raises(ConfigError, match=f"server.device = '{device}': no such device here; torch .* sees cpu$"):
            pick_device(device, "server.device")


@pytest.mark.usefixtures("two_gpus")
def test_with_two_gpus_a_third_is_refused_and_the_two_are_named() -> None:
    assert [pick_device(device, "") for device in ("cpu", "cuda", "cuda:0", "cuda:1")] == [
        "cpu",
        "cuda",
        "cuda:0",
        "cuda:1",
    ]
    told = "client.device = 'cuda:2': no such device here; .* sees cpu, cuda:0 .GPU of 0., cuda:1 .GPU of 1."
    with pytest.raises(ConfigError, match=told):
        pick_device("cuda:2", "client.device")
    assert described("cuda:1") == "cuda:1 (GPU of cuda:1)"
    assert "cuda:1" in what_is_there()


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.skipif(torch.version.cuda is not None, reason="this build of torch could use one")
def test_auto_takes_the_cpu_and_says_why_where_a_gpu_cannot_be_used() -> None:
    """As with a driver that is too old, or a GPU for which this build has no code: torch sees it, and every computation fails."""
    said: list[str] = []
    with pytest.raises((AssertionError, RuntimeError)):
        torch.ones(1, device="cuda")
    assert pick_device("auto", "server.device", said.append) == "cpu"
    assert len(said) == 1
    assert said[0].startswith("server.device = 'auto' takes the CPU: torch")


def test_the_owner_of_a_device_has_the_last_word() -> None:
    config = RunConfig.from_toml('client.device = "cuda:7"')
    with pytest.raises(ConfigError, match=r"client.device = 'cuda:7': no such .* --device or SL_DEVICE"):
        device_for(config, None, print)
    assert device_for(config, "cpu", print) == "cpu"


def test_a_clients_segments_are_where_it_computes_and_what_it_says_is_on_the_cpu() -> None:
    config = RunConfig.from_toml(SMALL, ["protocol.preset=fsl_sage", "protocol.gate.record=4"])
    welcome = Welcome(config=config.to_json(), client="c0", shard=0, shards=1)
    seat = take_seat(welcome, data=None, allowed=None, device="cpu:0")
    assert {str(seat.bank.get(part).device) for part in seat.bank.parts} == {"cpu:0"}


def test_the_simulator_takes_both_devices_and_gives_the_same_bits() -> None:
    config = RunConfig.from_toml(SMALL)
    runs = [Simulation(config), Simulation(config, device="cpu:0", client_device="cpu:0")]
    for simulation in runs:
        simulation.run()
    assert len({simulation.coordinator.weights_sha256() for simulation in runs}) == 1
    assert [simulation.coordinator.device for simulation in runs] == ["cpu", "cpu:0"]


def test_metrics_and_check_say_the_device() -> None:
    config = RunConfig.from_toml(SMALL)
    text = Metrics(Ledger(), config, "cuda:1").text().decode()
    assert 'device="cuda:1"' in next(line for line in text.splitlines() if line.startswith("sl_run_info{"))
    assert inspect(config).to_dict()["devices"] == {"server": pick_device("auto", ""), "client": "auto"}


def test_check_tells_of_a_device_that_is_not_here(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(SMALL)
    checked = ran("sl-server", "check", tmp_path / "run.toml", "--set", "server.device=cuda")
    assert checked.code == 0
    assert "server.device = cuda is not there" in " ".join(checked.out.split())


def test_both_sides_say_where_they_compute_and_a_client_refuses_what_it_has_not(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(SMALL)
    where = ("--listen", "127.0.0.1:0", "--out", tmp_path / "out", "--json", "--set", "client.device=cuda")
    with started("sl-server", "run", tmp_path / "run.toml", *where) as server:
        address = server.event("listening")["address"]
        assert {"device": "cpu", "asked": "auto"}.items() <= server.event("device").items()
        refused = ran("sl-client", "run", "--server", address)
        assert refused.code == 2
        assert "client.device = 'cuda': no such device here" in refused.err
        assert "client.device = 'cuda': no such device here" in server.event("left")["reason"]
        typed = ran("sl-client", "run", "--server", address, "--device", "gpu")
        assert (typed.code, "--device = 'gpu': must be auto" in typed.err) == (2, True)
        client = ran("sl-client", "run", "--server", address, env={"SL_DEVICE": "cpu"})
        assert (client.code, server.end()) == (0, 0)
    assert "computed on cpu" in next(line for line in client.lines if line.startswith("joined"))
    assert json.loads((tmp_path / "out/summary.json").read_text())["device"] == "cpu"
    page = ran("sl-server", "report", tmp_path / "out")
    assert page.code == 0
    assert "device of the head" in (tmp_path / "out/report.html").read_text()
