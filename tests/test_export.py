"""`sl-server export`: the unsplit network in plain PyTorch gives just the accuracy that the run reported, to the sample."""

from __future__ import annotations

import json
from collections import OrderedDict
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import ran, started
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from examples import own_network
from sl_common.config.run_config import RunConfig
from sl_common.errors import ConfigError
from sl_server.cli.application import app
from sl_server.simulation.simulation import Simulation
from sl_server.storage.export import export_run
from sl_server.storage.run_directory import RunDirectory
from sl_server.telemetry.ledger import Ledger

OWN = Path(own_network.__file__).with_suffix(".toml")
FAST = {"run.rounds": "2", "client.wave": "{ steps = 12 }", "data.batch_size": "32"}
PRIVATE = FAST | {"run.clients": "2", "model.name": "cnn", "model.args": "{ channels = [4, 8], hidden = 16 }"}


# --- plain PyTorch, which knows nothing of this project


def plain_mlp() -> nn.Module:
    hidden1 = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU())
    hidden2 = nn.Sequential(nn.Linear(24, 16), nn.ReLU())
    return nn.Sequential(OrderedDict(hidden1=hidden1, hidden2=hidden2, out=nn.Linear(16, 10)))


def plain_cnn() -> nn.Module:
    conv1 = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    conv2 = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    hidden = nn.Sequential(nn.Flatten(), nn.Linear(8 * 2 * 2, 16), nn.ReLU())
    return nn.Sequential(OrderedDict(conv1=conv1, conv2=conv2, hidden=hidden, out=nn.Linear(16, 10)))


def plain_own() -> nn.Module:
    return nn.Sequential(OrderedDict(own_network.network((1, 8, 8), 10, width=8, dropout=0.2)))


def digits() -> tuple[Tensor, Tensor]:
    """The test samples of `digits` as DIGITS.md describes them: every fifth, scaled to [0, 1] and normalised."""
    with np.load(str(files("sl_client.data") / "digits.npz")) as arrays:
        x, y = torch.from_numpy(arrays["images"][4::5]), torch.from_numpy(arrays["labels"][4::5]).long()
    return (x / 255 - 0.3059) / 0.3763, y


def accuracy(network: nn.Module, weights: Path, x: Tensor, y: Tensor) -> float:
    """Of the exported weights in a plain network."""
    network.load_state_dict(load_file(weights))
    network.eval()
    with torch.no_grad():
        return float((network(x).argmax(dim=1) == y).sum()) / len(y)


# --- runs


def run(out: Path, toml: str, settings: dict[str, str]) -> dict:
    """`sl-server simulate` in this process; its summary."""
    config = out.parent / f"{out.name}.toml"
    config.write_text(toml)
    overrides = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    result = CliRunner().invoke(app, ["simulate", str(config), "--out", str(out), *overrides], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads((out / "summary.json").read_text())


def export(out: Path, *options: object) -> Path:
    """`sl-server export` in this process; the file it says that it wrote."""
    result = CliRunner().invoke(app, ["export", str(out), *map(str, options)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return Path(result.output.split("wrote ")[1].split(": ")[0])


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A run whose clients all end with the same lower segment."""
    out = tmp_path_factory.mktemp("shared") / "run"
    settings = FAST | {
        "run.clients": "3",
        "model.name": "mlp",
        "model.args": "{ hidden = [24, 16] }",
        "model.cut": "hidden1",
    }
    return out, run(out, '[protocol]\npreset = "splitfed_v2"\n', settings)


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A run whose clients keep their lower segments and have a head each; the lower ones are saved as a client would."""
    out = tmp_path_factory.mktemp("private") / "run"
    keep_all = '[protocol]\nhead.copies = "per_client"\n'
    ledger = Ledger()
    config = RunConfig.from_toml(keep_all, [f"{key}={value}" for key, value in PRIVATE.items()])
    simulation = Simulation(config, count=ledger.count)
    directory = RunDirectory(out, config, ledger)
    for fact in simulation.run():
        directory.fact(fact, 0.0)
    for shard, seat in simulation.seats.items():
        save_file(seat.bank.get("lower").state(), out.parent / f"lower-{shard}.safetensors")
    return out, directory.finish(simulation.coordinator, 0.0)


def test_a_shared_network(shared: tuple[Path, dict]) -> None:
    out, summary = shared
    assert summary["evaluation"]["samples"] == 359
    assert accuracy(plain_mlp(), export(out), *digits()) == summary["evaluation"]["accuracy"] > 0.3


def test_where_to_is_the_users_choice(shared: tuple[Path, dict], tmp_path: Path) -> None:
    out, summary = shared
    path = export(out, "--to", tmp_path / "mine.safetensors")
    assert path == tmp_path / "mine.safetensors"
    assert accuracy(plain_mlp(), path, *digits()) == summary["evaluation"]["accuracy"]


def test_batch_norm_and_dropout_of_a_users_own_network(tmp_path: Path) -> None:
    """Buffers travel and are averaged too; in evaluation they make the difference."""
    settings = FAST | {"run.clients": "2", "model.args": "{ width = 8, dropout = 0.2 }"}
    summary = run(tmp_path / "run", OWN.read_text(), settings)
    x, y = own_network.data(None).test
    x = (x.float() / 255 - 0.31) / 0.38
    found = accuracy(plain_own(), export(tmp_path / "run"), x, y)
    assert found == summary["evaluation"]["accuracy"]
    fresh = plain_own()
    state = load_file(tmp_path / "run" / "model.safetensors")
    assert not torch.equal(state["stem.1.running_mean"], fresh.state_dict()["stem.1.running_mean"])
    assert state["stem.1.num_batches_tracked"] == 24


@pytest.mark.parametrize("shard", [0, 1])
def test_a_client_with_a_lower_segment_and_a_head_of_its_own(
    private: tuple[Path, dict], shard: int, tmp_path: Path
) -> None:
    out, summary = private
    lower, head = out.parent / f"lower-{shard}.safetensors", out / f"head-{shard}.safetensors"
    path = export(out, "--lower", lower, "--head", head, "--to", tmp_path / "whole.safetensors")
    assert accuracy(plain_cnn(), path, *digits()) == summary["evaluation"]["clients"][f"c{shard}"]["accuracy"]


def test_another_clients_head_gives_another_accuracy(private: tuple[Path, dict], tmp_path: Path) -> None:
    """The test above could fail: the halves of different clients do not make the network that was reported."""
    out, summary = private
    parts = "--lower", out.parent / "lower-0.safetensors", "--head", out / "head-1.safetensors"
    path = export(out, *parts, "--to", tmp_path / "mixed.safetensors")
    clients = summary["evaluation"]["clients"]
    assert accuracy(plain_cnn(), path, *digits()) not in (clients["c0"]["accuracy"], clients["c1"]["accuracy"])


@pytest.fixture(scope="module")
def networked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A run over the network in which lower segments are private; the clients write theirs."""
    folder = tmp_path_factory.mktemp("networked")
    settings = [w for k, v in PRIVATE.items() for w in ("--set", f"{k}={v}")]
    (folder / "run.toml").write_text('[protocol]\npreset = "parallel"\n')
    to = "--listen", "127.0.0.1:0", "--out", folder / "run", "--json"
    with started("sl-server", "run", folder / "run.toml", *to, *settings) as server:
        address = server.event("listening")["address"]
        save = [("--shard", f"{n + 1}/2", "--save-lower", folder / f"lower-{n}.safetensors") for n in (0, 1)]
        with started("sl-client", "run", "--server", address, *save[0]) as first:
            second = ran("sl-client", "run", "--server", address, *save[1])
            assert (first.end(), second.code, server.end()) == (0, 0, 0), server.err + first.err + second.err
    return folder, json.loads((folder / "run" / "summary.json").read_text())


@pytest.mark.parametrize("shard", [0, 1])
def test_the_lower_segment_that_a_client_wrote(networked: tuple[Path, dict], shard: int) -> None:
    folder, summary = networked
    path = export(folder / "run", "--lower", folder / f"lower-{shard}.safetensors")
    assert accuracy(plain_cnn(), path, *digits()) == summary["evaluation"]["clients"][f"c{shard}"]["accuracy"]


def test_private_segments_over_the_network_are_those_of_the_simulation(
    networked: tuple[Path, dict], tmp_path: Path
) -> None:
    """Also their fingerprint, which is made of what the clients reported."""
    _, summary = networked
    simulated = run(tmp_path / "run", '[protocol]\npreset = "parallel"\n', PRIVATE)
    assert summary["weights_sha256"] == simulated["weights_sha256"]
    assert summary["evaluation"] == simulated["evaluation"]


# --- what cannot be exported


@pytest.mark.parametrize("content", [None, "", "{", '{"run": {"round": 1}}'])
def test_no_run_directory(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=str(tmp_path)):
        export_run(tmp_path)


def test_a_private_lower_segment_is_asked_for(networked: tuple[Path, dict]) -> None:
    with pytest.raises(
        ConfigError, match=r"lower\.safetensors: no lower here; .* give --lower FILE \(sl-client run --save-lower"
    ):
        export_run(networked[0] / "run")


def test_a_private_head_is_asked_for_by_name(private: tuple[Path, dict]) -> None:
    out, _ = private
    with pytest.raises(
        ConfigError, match=r"no head here; .* give --head .*/head-0\.safetensors or .*/head-1\.safetensors"
    ):
        export_run(out, lower=out.parent / "lower-0.safetensors")


def test_a_file_that_is_no_weights(shared: tuple[Path, dict]) -> None:
    out, _ = shared
    with pytest.raises(ConfigError, match=r"config\.json"):
        export_run(out, lower=out / "config.json")


def test_weights_of_another_part(shared: tuple[Path, dict]) -> None:
    out, _ = shared
    with pytest.raises(ConfigError, match=r"the weights do not fit model 'mlp'[\s\S]*hidden1\.1\.weight"):
        export_run(out, lower=out / "head.safetensors")


def test_weights_of_another_model(shared: tuple[Path, dict], tmp_path: Path) -> None:
    out, _ = shared
    config = json.loads((out / "config.json").read_text())
    config["model"]["args"]["hidden"] = [24, 17]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"the weights do not fit model 'mlp'[\s\S]*hidden2\.0\.weight"):
        export_run(tmp_path, lower=out / "lower.safetensors", head=out / "head.safetensors")


def test_a_place_that_cannot_be_written(shared: tuple[Path, dict], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=str(tmp_path / "file" / "model")):
        export_run(shared[0], to=tmp_path / "file" / "model.safetensors")
