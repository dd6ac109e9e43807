"""Networks of users' own whose modules fail, or do not fit a run, in what only training does: `check` says so, where a run would have ended."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from test_check_agrees import checked, simulated, unchecked
from test_kinds import assert_all_of_it_works, resumed, trained
from world import make_config

from sl_common.config.run_config import RunConfig
from sl_common.errors import ConfigError
from sl_common.network.network import Network
from sl_common.tree import dumps
from sl_server.core.practice import practise
from sl_server.preflight.check import inspect

GRADIENTS = ["splitfed_v1", "splitfed_v2", "locfedmix", "loss_async"]  # that the head gives
ALL = [*GRADIENTS, "cse_fsl", "fsl_sage", "fedavg"]
SIDES = ["above", "below"]

# what trains to its end on either side of the cut: plain layers, and those that leave something behind, recompute, or draw
FINE = [
    "checkpoint",
    "weight_norm",
    "new_weight_norm",
    "spectral_norm",
    "new_spectral_norm",
    "kept",
    "lazy_norm",
    "no_stats",
    "cumulative",
    "encoder",
    "lstm",
    "frozen",
    "nothing",
    "turned",
    "expanded",
    "half",
    "bfloat",
    "double",
    "autocast",
    "late",
    "generator",
    "numpy",
    "divided",
    "stopped",
    "complex",
    "grid",
]
CUTLAYER_DRAWS = os.environ.get("CUTLAYER_DRAWS")
if CUTLAYER_DRAWS:  # at length
    FINE += [
        "orthogonal",
        "batch_norm",
        "group_norm",
        "layer_norm",
        "dropout",
        "alpha_dropout",
        "rrelu",
        "pool",
        "topk",
        "gru",
        "embedding_bag",
    ]

OTHER_TYPES = ("half", "bfloat", "double", "autocast")


def config(preset: str, how: str, where: str = "above", **more: Any) -> RunConfig:
    short = {"server__alignment": "{ epochs = 2 }", "protocol__learner__send_every": 2} if preset == "fsl_sage" else {}
    settings = {
        "model__name": '"used_nets:net"',
        "model__args": f'{{ how = "{how}", where = "{where}" }}',
        "client__wave": "{ steps = 4 }",
        "run__clients": 2,
    }
    return make_config(preset, **(settings | short | more))


@pytest.mark.parametrize("where", SIDES)
@pytest.mark.parametrize("how", FINE)
@pytest.mark.filterwarnings("ignore")
def test_what_trains_is_not_refused(how: str, where: str) -> None:
    for preset in ("splitfed_v1", "locfedmix", "fsl_sage"):
        run = config(preset, how, where)
        refusal = checked(run)
        if (
            where == "below" and how in OTHER_TYPES and preset != "splitfed_v1"
        ):  # what takes them next may not know the type
            assert not refusal or refusal.startswith("protocol.learner.aux"), preset
        assert refusal or simulated(run) == "", preset
        assert not refusal or how in OTHER_TYPES, refusal


@pytest.mark.parametrize("where", SIDES)
@pytest.mark.parametrize("how", ["weight_norm", "spectral_norm", "kept", "new_spectral_norm"])
@pytest.mark.filterwarnings("ignore")
def test_what_a_pass_leaves_behind_is_copied_kept_served_and_exported(how: str, where: str, tmp_path: Any) -> None:
    """Such a module cannot be copied by torch alone."""
    assert_all_of_it_works(config("splitfed_v1", how, where), tmp_path)


REFUSED = [
    # how, where, in which presets, what is said
    ("once", "above", ["fsl_sage"], r"protocol.gate.align_every.*second backward pass.*'linear'.*differentiate twice"),
    ("attention", "above", ["fsl_sage"], r"protocol.gate.align_every.*second backward pass"),
    ("reentrant_nothing", "above", ["fsl_sage"], r"its targets .*protocol.gate.align_every"),
    ("overwritten", "below", ALL, r"fails in training .*inplace"),
    ("relu", "below", ALL, r"fails in training .*inplace"),
    ("overwritten_input", "above", ALL, r"in-place.*inplace=False"),
    ("eval_raises", "above", ALL, r"fails in evaluation .*no evaluation here"),
    ("eval_raises", "below", ALL, r"fails in evaluation .*no evaluation here"),
    ("eval_tuple", "below", ALL, r"fails in evaluation|in evaluation .*the activations"),
    (
        "eval_shape",
        "below",
        ALL,
        r"in evaluation .*the activations of 2 samples are torch.float32 \(2, 8\), .* \(2, 16\)",
    ),
    ("eval_double", "below", ALL, r"in evaluation .*the activations of 2 samples are torch.float64"),
    ("eval_shape", "above", ALL, r"fails in evaluation"),
    ("train_tuple", "above", ALL, r"does not run"),
    ("history", "above", ALL, r"backward through the graph a second time"),
    ("history", "below", ALL, r"backward through the graph a second time"),
    ("first_size", "above", ALL, r"fails in training .*size of tensor"),
    ("first_size", "below", ALL, r"fails in training .*size of tensor"),
    ("grows", "below", ALL, r"low.3.seen is torch.float32 \(4, 16\) after training"),
    ("retyped", "below", ALL, r"low.3.seen is torch.float64 \(1, 16\) after training and torch.float32"),
    ("detached", "above", GRADIENTS, r"no gradient comes out of the head .*detaches"),
    ("detached", "above", ["fedavg"], r"no gradient comes back .*detaches its input"),
    ("no_grad", "above", GRADIENTS, r"no gradient comes out of the head"),
    ("counted", "below", ALL, r"fails in training .*enough"),
]


@pytest.mark.parametrize(
    ("how", "where", "presets", "said"), REFUSED, ids=[f"{r[0]}-{r[1]}-{len(r[2])}" for r in REFUSED]
)
@pytest.mark.filterwarnings("ignore")
def test_what_would_end_a_run_is_refused_by_its_keys(how: str, where: str, presets: list[str], said: str) -> None:
    others = [] if how in ("detached", "no_grad") else [preset for preset in ALL if preset not in presets]
    for preset in others:
        assert (checked(config(preset, how, where)), simulated(config(preset, how, where))) == ("", ""), preset
    for preset in presets if CUTLAYER_DRAWS else presets[:1] + presets[4:]:
        run = config(preset, how, where)
        with pytest.raises(ConfigError, match=said) as refused:
            inspect(run)
        assert "model 'used_nets:net'" in str(refused.value) or preset == "fedavg"
        assert unchecked(run), f"{preset} would have come to its end"


def kept_by_all(run: RunConfig) -> None:
    """Both sides' snapshots, as bytes."""
    world = trained(run)
    dumps(world.sessions.snapshot())
    for client in world.clients.values():
        dumps(client.seat.snapshot())


@pytest.mark.parametrize("where", SIDES)
@pytest.mark.parametrize(("kind", "said"), [("adam", "does not support sparse gradients"), ("sgd", "momentum_buffer")])
@pytest.mark.filterwarnings("ignore")
def test_sparse_gradients_are_refused_where_the_optimiser_or_a_checkpoint_cannot(
    where: str, kind: str, said: str
) -> None:
    rule = f'{{ kind = "{kind}", lr = 0.01{", momentum = 0.9" if kind == "sgd" else ""} }}'
    run = config("cse_fsl", "sparse", where, client__optimizer=rule, server__optimizer=rule)
    with pytest.raises(ConfigError, match=said):
        inspect(run)
    with pytest.raises((RuntimeError, ValueError)):
        kept_by_all(run)
    plain = '{ kind = "sgd", lr = 0.01 }'
    run = config("cse_fsl", "sparse", where, client__optimizer=plain, server__optimizer=plain)
    assert (checked(run), simulated(run)) == ("", "")


@pytest.mark.filterwarnings("ignore")
def test_a_shared_head_that_grows_could_not_be_resumed() -> None:
    run = config("splitfed_v2", "grows")
    with pytest.raises(ConfigError, match=r"high.seen is torch.float32 \(4, 16\) after training"):
        inspect(run)
    with pytest.raises(ConfigError, match="does not fit this run"):
        resumed(trained(run))


@pytest.mark.filterwarnings("ignore")
def test_practice_changes_nothing() -> None:
    run = config("locfedmix", "spectral_norm")
    network = Network.build(run)
    before = {name: t.clone() for name, t in network.part("head").state_dict().items()}
    torch.rand(3)
    drawn = torch.get_rng_state()
    practise(run, network)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(before[name], t) for name, t in network.part("head").state_dict().items())
    assert all(p.grad is None for p in network.part("head").parameters())
