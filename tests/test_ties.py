"""Tensors with several names: refused where the cut would make two of what is trained, and one tensor everywhere else."""

from __future__ import annotations

from pathlib import Path

import odd_nets
import pytest
import torch
from test_kinds import assert_all_of_it_works, config, trained

from sl_client.training.seat import take_seat
from sl_common.errors import ConfigError, WireError
from sl_common.messages.training import Welcome
from sl_common.network.footprint import nbytes_of
from sl_common.network.network import Network
from sl_common.tensors import check_copies
from sl_common.training.segment import Segment
from sl_server.preflight.check import inspect

SPLIT = {"model__cut": '"a"'}
LOW, HIGH = {"model__cut": '"b"'}, {"model__cut": '"flat"'}


@pytest.mark.parametrize(
    ("how", "above", "below"),
    [
        ("module", "b.layer.weight", "a.layer.weight"),
        ("parameter", "b.layer.weight", "a.layer.weight"),
        ("view", "b.layer.weight", "a.layer.weight"),
        ("part", "b.layer.bias", "a.layer.weight"),
        ("buffer", "b.layer.seen", "a.layer.weight"),
        ("statistics", "b.layer.1", "a.layer.1"),
    ],
)
def test_what_the_cut_would_make_two_of_is_refused_with_both_names(how: str, above: str, below: str) -> None:
    run = config("tied", args=f'how = "{how}"', **SPLIT)
    if how == "module":
        above, below = "b.layer", "a.layer"
    welcome = Welcome(config=run.to_json(), client="c0", shard=0, shards=2)
    for build in (lambda: Network.build(run), lambda: take_seat(welcome, data=None, allowed=None)):
        with pytest.raises(
            ConfigError, match=rf"cut = 'a': {below}\S* of the lower and {above}\S* of the head are one"
        ):
            build()


@pytest.mark.parametrize("where", [LOW, HIGH], ids=["lower", "head"])
@pytest.mark.parametrize("how", ["module", "parameter", "statistics", "constant", "columns"])
def test_on_one_side_it_stays_one_and_is_exported(how: str, where: dict[str, str], tmp_path: Path) -> None:
    run = config("tied", args=f'how = "{how}"', **where)
    state = assert_all_of_it_works(run, tmp_path)
    names = {"statistics": ["1.running_var"], "constant": ["table"], "columns": []}.get(how, ["weight"])
    for name in names:
        assert torch.equal(state[f"a.layer.{name}"], state[f"b.layer.{name}"])
    if how == "columns":
        assert not torch.equal(state["a.layer.weight"], state["b.layer.weight"])


def test_its_bytes_count_once_its_optimiser_has_one_and_check_says_so() -> None:
    run = config("tied", args='how = "module"', **LOW)
    network = Network.build(run)
    assert nbytes_of(network.lower.state_dict().values()) == 4 * (64 * 64 + 64)
    segment = Segment(network.lower, run.client.optimizer)
    assert segment.optimizer is not None
    assert len(segment.optimizer.param_groups[0]["params"]) == 2
    report = inspect(run)
    assert {tie.names for tie in report.ties} == {(f"a.layer.{n}", f"b.layer.{n}") for n in ("weight", "bias")}
    assert [cut.after for cut in report.cuts] == ["flat", "b"], "no cut between the two"


@pytest.mark.parametrize("how", ["view", "part", "buffer"])
def test_shared_memory_that_copies_would_lose_is_refused_on_one_side(how: str) -> None:
    with pytest.raises(ConfigError, match=r"a\.layer\.weight.* share memory|share memory"):
        Network.build(config("tied", args=f'how = "{how}"', **LOW))


@pytest.mark.parametrize("how", ["frozen", "constant"])
def test_what_nothing_changes_may_be_on_both_sides(how: str, tmp_path: Path) -> None:
    run = config("tied", args=f'how = "{how}"', **SPLIT)
    state = assert_all_of_it_works(run, tmp_path)
    name = "weight" if how == "frozen" else "table"
    assert torch.equal(state[f"a.layer.{name}"], state[f"b.layer.{name}"])
    (tie,) = Network.build(run).ties
    assert tie.crosses
    assert "a copy on each side" in str(tie)


def test_copies_that_would_differ_are_refused() -> None:
    args = 'how = "frozen"'
    with pytest.raises(ConfigError, match=r"codec.state.kind = 'float16': a.layer.weight"):
        Network.build(config("tied", args=args, codec__state='{ kind = "float16" }', **SPLIT))
    with pytest.raises(ConfigError, match=r"client.initial = 'own': a.layer.weight"):
        Network.build(config("tied", "parallel", args, client__initial='"own"', **SPLIT))
    own = {"w": torch.ones(2)}
    check_copies(own, own, ["w"], "c0's lower")
    with pytest.raises(WireError, match=r"c0's lower: w is frozen"):
        check_copies({"w": torch.tensor([1.0, 1.1])}, own, ["w"], "c0's lower")


# --- backward passes that cannot be made in halves


REENTRANT = pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # in evaluation


@REENTRANT
@pytest.mark.parametrize("preset", ["splitfed_v1", "parallel", "locfedsl"])
def test_recomputed_activations_train_with_the_bits_of_the_plain_way(preset: str) -> None:
    run = config("recomputed", preset)
    network = Network.build(run)
    assert not network.halves
    (said,) = network.cautions
    assert "server.reply_first = true" in said
    assert "use_reentrant=True" in said
    plain = config("recomputed", preset, server__reply_first="false")
    assert Network.build(plain).cautions == ()
    assert trained(run).coordinator.weights_sha256() == trained(plain).coordinator.weights_sha256()


def test_hooks_of_the_users_own_give_the_same_bits_either_way() -> None:
    run, plain = (config("recomputed", args='how = "hooks"', server__reply_first=first) for first in ("true", "false"))
    assert trained(run).coordinator.weights_sha256() == trained(plain).coordinator.weights_sha256()


def test_the_trial_asks_no_more_of_a_network_than_training_does() -> None:
    network = Network.build(config("in_place"))
    assert (network.halves, network.cautions) == (True, ())
    trained(config("in_place"))


@REENTRANT
def test_a_head_that_would_not_be_trained_is_refused() -> None:
    """Its first block recomputes, and it is trained on activations that want no gradient."""
    for preset, key in (("locsplitfed", "learner.kind = 'local_loss'"), ("locfedmix", "head.mix.kind = 'mixup'")):
        with pytest.raises(ConfigError, match=rf"{key}.*nobody wants a gradient.*inner.0.bias.*use_reentrant"):
            Network.build(config("recomputed", preset))
    below = Network.build(config("recomputed", args="below = true")).cautions
    assert any("c1.inner.0.bias" in said and "of the lower segment get no gradient" in said for said in below)


def test_a_pass_that_fails_in_mid_run_names_the_key() -> None:
    head = odd_nets.Recomputed(torch.nn.Conv2d(8, 16, 3))
    segment = Segment(head, config("recomputed").server.optimizer)
    z = torch.randn(2, 8, 5, 5, requires_grad=True)
    with pytest.raises(ConfigError, match=r"set server.reply_first = false"):
        segment.backward(segment.forward(z).sum(), awaited=z)
