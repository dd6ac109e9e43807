"""Numbers that a network begins with, such as a mask of -Inf, are no poison: not in training, and not in what is read again. Others are."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_kinds import assert_all_of_it_works, config, kept, resumed, trained

from sl_common.config.server_section import Guard
from sl_common.errors import ConfigError, DataError, Diverged, WireError
from sl_common.network.network import Network
from sl_common.protocol import Record
from sl_common.protocol.at import At
from sl_common.protocol.merge import Average
from sl_common.tensors import constants_of
from sl_common.training.segment import Segment
from sl_server.core.guard import guarded_state
from sl_server.core.merged import checked_merge
from sl_server.storage.trained import read_trained_run

INF, NAN = math.inf, math.nan
FILLS = ["-inf", "-3.4028234663852886e38", "-1e30"]


@pytest.mark.parametrize("frozen", ["false", "true"])
@pytest.mark.parametrize("fill", FILLS)
def test_a_mask_goes_through_a_run_unchanged(fill: str, frozen: str, tmp_path: Path) -> None:
    state = assert_all_of_it_works(config("masked", args=f'fill = "{fill}", frozen = {frozen}'), tmp_path)
    for block in ("low.1", "high"):
        assert torch.equal(state[f"{block}.mask"], torch.triu(torch.full((8, 8), float(fill)), 1))
        assert state[f"{block}.constant"][1].isnan()


@pytest.mark.parametrize("action", ["reject", "clip"])
@pytest.mark.parametrize("preset", ["sequential", "parallel", "splitfed_v2", "fedavg", "locsplitfed"])
def test_with_every_kind_of_merge_and_guard(preset: str, action: str, tmp_path: Path) -> None:
    world = trained(config("masked", preset, server__guard__action=f'"{action}"'))
    for state in world.coordinator.weights().values():
        (mask,) = [tensor for name, tensor in state.items() if name.endswith("mask")]
        assert mask[0, 1] == -INF
        assert mask[1, 0] == 0
    resumed(world)
    read_trained_run(kept(world, tmp_path / "out"), lambda _: None)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_new_ones_are_refused_wherever_they_are_read(value: float) -> None:
    """Also in a tensor that has some of its own, and an infinity of the other sign in their place."""
    run = config("masked")
    world = trained(run)
    network = Network.build(run)
    segment = Segment(network.lower, run.client.optimizer)
    for name, place in (("low.1.mask", (2, 1)), ("low.1.constant", (3,)), ("low.1.attn.in_proj_bias", (0,))):
        state = world.coordinator.weights()["lower"]
        state = {key: tensor.clone() for key, tensor in state.items()}
        state[name][place] = value
        with pytest.raises(WireError, match=f"{name} holds NaN or Inf"):
            segment.load(state)
        with pytest.raises(WireError, match=f"{name} hold NaN or Inf"):
            guarded_state(state, Guard(), "c0's lower", constants_of(Network.build(run).lower.state_dict(), 1e18))
        clean = guarded_state(
            state, Guard(action="clip"), "c0", constants_of(Network.build(run).lower.state_dict(), 1e18)
        )
        assert clean[name][place].isfinite()
        assert clean["low.1.mask"][0, 1] == -INF, "which was there from the beginning"
    state["low.1.mask"] = -state["low.1.mask"]
    with pytest.raises(WireError):
        segment.load(state)


def test_a_changed_run_directory_and_checkpoint_are_refused(tmp_path: Path) -> None:
    world = trained(config("masked"))
    out = kept(world, tmp_path / "out")
    head = world.coordinator.bank.get("head")
    with torch.no_grad():
        head.module.get_submodule("high").mask[3, 0] = -INF
    with pytest.raises(DataError, match=r"high\.mask holds NaN or Inf"):
        resumed(world)
    (out / "weights.json").unlink()
    data = load_file(out / "head.safetensors")
    data["high.mask"][3, 0] = -INF
    save_file(data, out / "head.safetensors")
    with pytest.raises(ConfigError, match=r"high\.mask holds NaN or Inf"):
        read_trained_run(out, lambda _: None)


def test_one_client_without_the_mask_is_found() -> None:
    """An average of -Inf and a number is -Inf, as it began; of -Inf and Inf it is none."""
    given = {"lower": {"mask": torch.tensor([-INF, 0.0])}}
    own = {0: {"mask": torch.tensor([-INF, 0.0])}, 1: {"mask": torch.tensor([INF, 0.0])}}
    record = Record(at=At(seed=0), samples={0: 1, 1: 1}, weights={"lower": own})
    merged, guilty = checked_merge(Average().after_round, record, {"lower": 1e18}, given)
    assert guilty.keys() == {1}
    assert merged["lower"]["mask"].tolist() == [-INF, 0.0]
    with pytest.raises(Diverged):
        checked_merge(Average().after_round, record, {"lower": 1e18})


def test_a_limit_below_what_the_network_began_with() -> None:
    """Of what began beyond it, only just that is let through."""
    state = {"w": torch.tensor([50.0, 1.0])}
    given = constants_of(state, 10.0)
    assert guarded_state(state, Guard(weights=10.0), "c0", given)["w"] is state["w"]
    with pytest.raises(WireError, match=r"w hold 51, at most 10 is allowed"):
        guarded_state({"w": torch.tensor([51.0, 1.0])}, Guard(weights=10.0), "c0", given)
