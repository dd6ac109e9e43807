"""Every type of number that a state dict may hold is averaged as what it is, travels, is kept and read again; others are refused by name."""

from __future__ import annotations

import copy
from fractions import Fraction
from pathlib import Path
from typing import Any

import odd_nets
import pytest
import torch
from drawn import bytes_of
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from world import World

from sl_common.codec.packed import DTYPES
from sl_common.config.run_config import RunConfig
from sl_common.errors import ConfigError, WireError
from sl_common.kinds import mean_of
from sl_common.models import join
from sl_common.network.network import Network
from sl_common.tensors import all_finite, is_within, state_digest
from sl_common.training.segment import Segment
from sl_common.tree import dumps, loads
from sl_server.core.coordinator import Coordinator
from sl_server.storage.export import export_run
from sl_server.storage.run_directory import RunDirectory
from sl_server.storage.trained import read_trained_run
from sl_server.telemetry.ledger import Ledger
from sl_server.training.rehearsal import rehearse

LEARNING = [torch.complex64, torch.float64, torch.float16, torch.bfloat16]  # of which torch trains parameters
INTEGERS = [dtype for dtype in DTYPES if not (dtype.is_floating_point or dtype.is_complex)]


def config(function: str, preset: str = "splitfed_v1", args: str = "", **overrides: Any) -> RunConfig:
    """A short run of one of the networks in odd_nets.py; `args` as in a TOML table."""
    toml = f'[protocol]\npreset = "{preset}"\n[model]\nname = "odd_nets:{function}"\nargs = {{ {args} }}\n[data]\nbatch_size = 32\n'
    base = {"run.clients": 2, "run.rounds": 2, "client.wave": "{ steps = 2 }"}
    settings = base | {key.replace("__", "."): value for key, value in overrides.items()}
    return RunConfig.from_toml(toml, [f"{key}={value}" for key, value in settings.items()])


def trained(run: RunConfig) -> World:
    world = World(run)
    for _ in range(run.run.clients):
        world.join()
    world.run()
    assert world.coordinator.ended is not None
    assert world.coordinator.ended.finished
    return world


def kept(world: World, folder: Path) -> Path:
    """What its run directory holds at the end."""
    directory = RunDirectory(folder, world.config, Ledger())
    directory.finish(world.coordinator, 1.0)
    return folder


def resumed(world: World) -> Coordinator:
    """A server that goes on from a checkpoint, as bytes, which it tries out before."""
    extra = {"files": {}, "ledger": Ledger().snapshot(), "seconds": 1.5}
    tree = loads(dumps(world.sessions.snapshot() | extra))
    network = Network.build(world.config)
    rehearse(copy.deepcopy(tree), network, Coordinator(world.config, network))
    again = Coordinator(world.config, Network.build(world.config))
    again.restore(tree["coordinator"])
    return again


def assert_all_of_it_works(run: RunConfig, folder: Path) -> dict[str, torch.Tensor]:
    """Trained, averaged, sent, checkpointed, written, read by `serve` and exported: the whole network's state."""
    world = trained(run)
    states = world.coordinator.weights()
    again = resumed(world)
    assert {part: state_digest(state) for part, state in again.weights().items()} == {
        p: state_digest(s) for p, s in states.items()
    }
    assert read_trained_run(kept(world, folder / "out"), lambda _: None).lower_sha256 == state_digest(states["lower"])
    path, _ = export_run(folder / "out")
    exported = load_file(path)
    assert state_digest(exported) == state_digest({**states["lower"], **states["head"]})
    whole = join(Network.build(run).blocks)
    whole.load_state_dict(exported, strict=True)
    return exported


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_buffer_of_any_type_goes_through_a_run_unchanged(dtype: torch.dtype, tmp_path: Path) -> None:
    name = str(dtype).removeprefix("torch.")
    state = assert_all_of_it_works(config("of_dtype", args=f'dtype = "{name}"'), tmp_path)
    assert bytes_of(state["low.0.held"]) == bytes_of(odd_nets.some(dtype, 64, 1))
    assert bytes_of(state["high.held"]) == bytes_of(odd_nets.some(dtype, 64, 2))


@pytest.mark.parametrize(
    ("dtype", "optimizer"),  # Adam's eps is 0 in float16, and so torch's own result NaN
    [(dtype, kind) for dtype in LEARNING for kind in ("sgd", "adam") if (dtype, kind) != (torch.float16, "adam")],
)
def test_a_parameter_of_any_type_learns(dtype: torch.dtype, optimizer: str, tmp_path: Path) -> None:
    name = str(dtype).removeprefix("torch.")
    rule = f'{{ kind = "{optimizer}", lr = 0.01 }}'
    args = {"client__optimizer": rule, "server__optimizer": rule}
    run = config("of_dtype", "splitfed_v1", f'dtype = "{name}", learns = true', **args)
    state = assert_all_of_it_works(run, tmp_path)
    for held, seed in (("low.0.held", 1), ("high.held", 2)):
        assert state[held].dtype == dtype
        moved = (state[held] - odd_nets.some(dtype, 64, seed)).abs()
        assert 0 < moved.max() < 2
    if dtype.is_complex:
        assert not torch.equal(state["high.held"].imag, state["high.held"].imag.round())


@pytest.mark.parametrize("name", ["float64", "bfloat16"])
def test_a_whole_network_of_another_type(name: str, tmp_path: Path) -> None:
    state = assert_all_of_it_works(config("of_all", args=f'dtype = "{name}"'), tmp_path)
    assert {tensor.dtype for tensor in state.values()} == {getattr(torch, name)}


def test_views_of_other_memory_and_shapes_known_late(tmp_path: Path) -> None:
    state = assert_all_of_it_works(config("views"), tmp_path)
    assert state["low.wide"].tolist() == torch.arange(4.0).unsqueeze(1).expand(4, 5).tolist()
    assert torch.equal(state["high.negative"], odd_nets.some(torch.complex64, 5).conj().imag)
    other = Network.build(config("views", run__seed=1)).lower.state_dict()
    assert not torch.equal(Network.build(config("views")).lower.state_dict()["low.1.weight"], other["low.1.weight"])


@pytest.mark.parametrize("codec", ["float16", "float8", "uniform", "topk", "deflate"])
def test_codecs_of_weights_encode_what_they_can(codec: str) -> None:
    """Complex numbers and masks go as they are."""
    kind = f'{{ kind = "{codec}" }}'
    for function, args in (("of_dtype", 'dtype = "complex64", learns = true'), ("masked", "")):
        trained(config(function, args=args, codec__state=kind))


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("sparse", "low.0.odd is torch.sparse_coo"),
        ("meta", "low.0.odd is on the meta device"),
        ("quantised", "low.0.odd is torch.qint8"),
        ("expanded", "low.0.odd is trained and expanded"),
        ("state", "low.0._extra_state is state that is no tensor"),
        ("complex128", "low.0.odd is torch.complex128"),
        ("complex32", "low.0.odd is torch.complex32"),
        ("float8_e8m0fnu", "low.0.odd is torch.float8_e8m0fnu"),
    ],
)
def test_what_no_run_can_carry_is_refused_by_name(what: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text) as refused:
        Network.build(config("refused", args=f'what = "{what}"'))
    assert "a run carries dense tensors of float32" in str(refused.value)


def test_a_cut_that_is_complex_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"floating point numbers \(float16, .*got torch.complex64"):
        Network.build(config("of_all", args='dtype = "complex64"'))


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@given(data=st.data())
def test_integers_are_averaged_exactly(dtype: torch.dtype, data: st.DataObject) -> None:
    """Against fractions, also beyond 2^53 and for counts of any length; halves go to the even one."""
    low, high = (0, 1) if dtype == torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
    counts = data.draw(st.lists(st.integers(1, 9) | st.integers(1, 1 << 40), min_size=1, max_size=4))
    number = st.integers(low, high) | st.sampled_from([low, low + 1, high - 1, high])
    rows = [data.draw(st.lists(number, min_size=3, max_size=3)) for _ in counts]
    mean = mean_of([torch.tensor(row, dtype=dtype) for row in rows], counts)
    columns = zip(*rows, strict=True)
    wanted = [round(Fraction(sum(n * x for n, x in zip(counts, c, strict=True)), sum(counts))) for c in columns]
    assert (mean.dtype, mean.tolist()) == (dtype, [bool(w) for w in wanted] if dtype == torch.bool else wanted)


def test_complex_numbers_are_averaged_by_their_parts() -> None:
    a, b = torch.tensor([1 + 2j, 3 - 1j]), torch.tensor([2 + 5j, -1 + 1j]).conj()
    assert mean_of([a, b], [1, 3]).tolist() == [(1 + 6) / 4 + (2 - 15) / 4 * 1j, 0 - 1j]


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64], ids=str)
def test_what_all_have_stays_to_the_bit(dtype: torch.dtype) -> None:
    x = odd_nets.some(dtype, 1000)
    assert bytes_of(mean_of([x] * 3, [3, 5, 6])) == bytes_of(x)


def test_infinities_that_all_have_stay_and_others_do_not() -> None:
    inf, nan = float("inf"), float("nan")
    mean = mean_of([torch.tensor([-inf, nan, 1.0, inf]), torch.tensor([-inf, nan, 2.0, -inf])], [1, 1])
    assert mean[:3].tolist()[0] == -inf
    assert mean[1].isnan()
    assert mean[2] == 1.5
    assert mean[3].isnan(), "which the guard finds"
    top = torch.finfo(torch.float64).max
    assert (
        mean_of(
            [torch.tensor([top], dtype=torch.float64)] * 1 + [torch.tensor([0.9 * top], dtype=torch.float64)], [5, 5]
        )
        .isfinite()
        .all()
    )


@pytest.mark.parametrize("part", [0, 1])
def test_poison_in_a_part_of_a_complex_number_is_seen(part: int) -> None:
    x = torch.ones(3, dtype=torch.complex64)
    torch.view_as_real(x)[1, part] = 1e9
    assert is_within(x, 1e10)
    assert not is_within(x, 1e8)
    torch.view_as_real(x)[1, part] = float("nan")
    assert not all_finite(x)
    segment = Segment(
        nn.Sequential(odd_nets.Holds(torch.ones(3, dtype=torch.complex64))), config("of_dtype").client.optimizer
    )
    with pytest.raises(WireError, match=r"0\.held holds NaN or Inf"):
        segment.load({"0.held": x})
