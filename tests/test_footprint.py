"""A client's memory: what a segment needs is known before it is built, only what is needed is built, and limits hold."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from live import ClientThread, serving
from torch import nn
from world import make_config

from sl_client.device.limits import DeviceLimits, MemoryUse, parse_size
from sl_client.device.pages import _clean_mappings, drop_clean_pages
from sl_common.config.presets import PRESETS
from sl_common.config.run_config import RunConfig
from sl_common.errors import ConfigError
from sl_common.models import MODELS, build, fill, join
from sl_common.network.footprint import FACTOR, at_rest, footprint_of, kept_by
from sl_common.network.network import Network
from sl_common.training.optim import Adam, Sgd

GiB = 1 << 30
RESNET = """
[model]
name = "resnet18"
cut = "layer2_1"
[data]
name = "cifar10"
"""
IMAGE = {"mlp": (1, 8, 8), "cnn": (1, 28, 28), "cnn_emnist": (1, 28, 28)}  # others: CIFAR's


def input_of(name: str) -> tuple[int, ...]:
    return IMAGE.get(name, (3, 32, 32))


# --- built without the head


@pytest.mark.parametrize("name", MODELS)
def test_the_first_blocks_have_the_whole_networks_values_wherever_it_is_cut(name: str) -> None:
    asked = {"input": input_of(name), "classes": 10, "args": {}, "seed": 7}
    whole, hollow = build(name, **asked), build(name, **asked, hollow=True)
    assert all(t.is_meta for _, block in hollow for t in block.state_dict().values())
    for cut in {1, len(whole) // 2, len(whole) - 1}:
        lower = join(build(name, **asked, hollow=True)[:cut])
        fill(lower, 7)
        expected = join(whole[:cut]).state_dict()
        assert lower.state_dict().keys() == expected.keys()
        assert all(torch.equal(t, expected[key]) for key, t in lower.state_dict().items())


def test_filling_leaves_the_generator_alone() -> None:
    before = torch.get_rng_state()
    fill(join(build("cnn", input=(1, 8, 8), classes=10, args={}, seed=0, hollow=True)[:1]), 0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_client_builds_its_parts_and_no_more(preset: str) -> None:
    config = make_config(preset)
    parts = config.protocol.learner.parts
    mine, whole = Network.build(config, parts=parts), Network.build(config)
    assert (mine.cut_shape, mine.limit_bytes, mine.limit_tensors, mine.smashed_nbytes) == (
        whole.cut_shape,
        whole.limit_bytes,
        whole.limit_tensors,
        whole.smashed_nbytes,
    )
    for part in parts:
        expected = whole.part(part).state_dict()
        assert all(torch.equal(t, expected[key]) for key, t in mine.part(part).state_dict().items())
    assert all(t.is_meta for t in mine.head.state_dict().values()) == ("head" not in parts)


# --- what it needs


def test_weights_gradients_optimiser_and_activations_are_counted() -> None:
    """By hand, for 64 → 16 → 10, cut after the first, batches of 32: ReLU's result is kept, the linear layer's input too."""
    config = make_config("parallel", client__optimizer='{ kind = "adam" }')
    need = footprint_of(config, Network.build(config))
    weights = 4 * (64 * 16 + 16)
    assert (need.weights, need.gradients, need.optimizer) == (weights, weights, 2 * weights)
    x, z = 32 * 64 * 4, 32 * 16 * 4
    assert need.activations == x + z + z  # the second time as the message
    assert need.needed == 4 * weights + FACTOR * need.activations


@pytest.mark.parametrize(("optimizer", "moments"), [(Sgd(momentum=0), 0), (Sgd(momentum=0.5), 1), (Adam(), 2), (Adam(amsgrad=True), 3)])  # fmt: skip
def test_an_optimisers_state_is_as_large_as_it_says(optimizer: Sgd | Adam, moments: int) -> None:
    weight = nn.Parameter(torch.zeros(100))
    weight.grad = torch.ones(100)
    made = optimizer.make([weight])
    made.step()
    large = [t for t in made.state[weight].values() if isinstance(t, torch.Tensor) and t.numel() == 100]
    assert len(large) == moments == optimizer.moments


def test_what_autograd_keeps_is_counted_once_and_without_the_weights() -> None:
    x, module = torch.randn(4, 8, requires_grad=True), nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    _, kept = kept_by(module, x)
    assert kept == 4 * 8 * 4 * 2  # x and ReLU's result, which the second layer needs too


@pytest.mark.parametrize("preset", PRESETS)
def test_what_is_known_before_anything_is_built_is_right(preset: str) -> None:
    config = make_config(preset)
    early, built = at_rest(config), footprint_of(config, Network.build(config))
    if "aux" in config.protocol.learner.parts:
        assert early.segment < built.segment
    else:
        assert early.segment == built.segment
    assert early.activations == 0


# --- what is allowed


@pytest.mark.parametrize(
    ("text", "nbytes"), [("512M", 512 << 20), ("1.5G", 3 << 29), ("64 KiB", 1 << 16), ("1000", 1000), ("2gb", 2 << 30)]
)
def test_sizes(text: str, nbytes: int) -> None:
    assert parse_size(text) == nbytes


@pytest.mark.parametrize("text", ["", "M", "-1M", "12X", "0", "1,5G", "nan"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="--max-memory"):
        parse_size(text)


def having(used: int, free: int, total: int) -> MemoryUse:
    return MemoryUse(used=used, free=free, total=total)


def test_a_segment_is_refused_exactly_where_it_does_not_fit() -> None:
    config = make_config("parallel")
    network = Network.build(config)
    needed = footprint_of(config, network).needed
    DeviceLimits(memory=needed + 1000).check_built(config, network, lambda: having(1000, GiB, GiB))
    with pytest.raises(ConfigError, match=r"does not fit.* × .* activations.*--max-memory is"):
        DeviceLimits(memory=needed + 999).check_built(config, network, lambda: having(1000, GiB, GiB))


def test_weights_alone_that_do_not_fit_are_refused_before_they_are_there() -> None:
    config = RunConfig.from_toml(RESNET)
    rest = at_rest(config).segment
    DeviceLimits(memory=rest + 1000).check(config, lambda: having(1000, GiB, GiB))
    with pytest.raises(ConfigError, match=r"does not fit.*and activations besides.*--max-memory is"):
        DeviceLimits(memory=rest + 999).check(config, lambda: having(1000, GiB, GiB))


def test_a_device_without_the_memory_refuses_by_itself_and_says_all_numbers() -> None:
    with pytest.raises(ConfigError) as refused:
        DeviceLimits().check(RunConfig.from_toml(RESNET), lambda: having(200 << 20, 2 << 20, 64 << 20))
    for words in ("200.0 MiB are in use", "2.6 MiB weights", "and activations", "64.0 MiB, 2.0 MiB of them free"):
        assert words in str(refused.value)


def test_groups_of_processes_count_where_they_may_have_less(tmp_path: Path) -> None:
    proc, group = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (group / "a/b").mkdir(parents=True)
    (proc / "self/status").write_text("Name:\tx\nVmRSS:\t  100 kB\n")
    (proc / "meminfo").write_text("MemTotal:  4096 kB\nMemAvailable:  2048 kB\n")
    (proc / "self/cgroup").write_text("0::/a/b\n")
    assert MemoryUse.now(proc, group) == having(100 << 10, 2 << 20, 4 << 20)
    (group / "a/memory.max").write_text("1048576\n")
    (group / "a/memory.current").write_text("1048000\n")
    (group / "a/b/memory.max").write_text("max\n")
    assert MemoryUse.now(proc, group) == having(100 << 10, 576, 1 << 20)


def test_this_machine_has_memory() -> None:
    now = MemoryUse.now()
    assert 0 < now.used < now.total
    assert 0 <= now.free <= now.total


# --- in a run


def test_a_client_that_cannot_hold_its_segment_says_so_to_both_sides() -> None:
    with serving(make_config("parallel", run__clients=1)) as live:
        client = ClientThread(live.address, limits=DeviceLimits(memory=1 << 20))
        client.join(60)
        assert isinstance(client.error, ConfigError)
        assert "--max-memory is 1.0 MiB" in str(client.error)
        assert client.runner.seat is None
        until = time.monotonic() + 30  # the server closes the stream before it tells why the client left
        while not any("does not fit" in getattr(fact, "reason", "") for fact in live.facts):
            assert time.monotonic() < until, live.facts
            time.sleep(0.01)


def test_threads_are_the_owners_choice() -> None:
    before = torch.get_num_threads()
    try:
        config = make_config("parallel", run__threads=1)
        DeviceLimits(threads=3).set_threads(config)
        assert torch.get_num_threads() == 3
        DeviceLimits().set_threads(config)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


# --- what a process loads

TRAIN = """
import json, sys, torch
from sl_common.training.optim import Adam, Sgd
for rule in (Sgd(lr=0.1, momentum=0.9), Adam(), Adam(kind="adamw")):
    weight = torch.nn.Parameter(torch.ones(3))
    made = rule.make([weight])
    weight.grad = torch.ones(3)
    made.step(); made.zero_grad(set_to_none=True); made.load_state_dict(made.state_dict())
from sl_common.training.segment import Segment
lower = Segment(torch.nn.Linear(3, 2), Sgd())
lower.backward(lower.forward(torch.ones(4, 3)), torch.ones(4, 2))
import sl_client.training.runner, sl_client.console.show, sl_client.cli.application
from sl_client.device.limits import DeviceLimits
from sl_common.config.run_config import RunConfig
from sl_common.network.network import Network
config = RunConfig.from_toml('[model]\\nname = "cnn"')
DeviceLimits().check(config)
DeviceLimits().check_built(config, Network.build(config, parts=("lower",)))
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules} | {n for n in sys.modules if n.startswith("torch._dynamo")})))
"""


def test_training_does_not_load_what_a_client_has_no_use_for() -> None:
    """Torch's compiler and sympy: more memory and time than all of ours together."""
    done = subprocess.run([sys.executable, "-c", TRAIN], capture_output=True, text=True, timeout=120, check=True)
    loaded = set(json.loads(done.stdout))
    assert {"torch", "grpc", "numpy"} <= loaded
    assert not loaded & {"torch._dynamo", "sympy", "prometheus_client", "sl_server"}


GIVE_BACK = """
import json, torch
from sl_client.device.pages import drop_clean_pages, use_one_arena
use_one_arena()
net, x = torch.nn.Conv2d(1, 4, 3), torch.ones(2, 1, 8, 8)
def mapped(): return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssFile"))
before, z = mapped(), net(x)
given, after = drop_clean_pages(), mapped()
print(json.dumps([before, given, after, torch.equal(net(x), z)]))
"""


def test_only_clean_pages_of_files_are_given_back(tmp_path: Path) -> None:
    """Of mappings: code, constants that relocation has changed, what may be written, what is no file's, what is shared."""
    lines = (
        ("r-xp", "/lib/a.so", 8, 0),
        ("r--p", "/lib/a.so", 4, 4),
        ("rw-p", "/lib/a.so", 4, 0),
        ("r--p", "", 4, 0),
        ("r--s", "/dev/x", 4, 0),
        ("r--p", "/lib/b.so", 0, 0),
    )
    text = "".join(
        f"{n}000-{n}800 {mode} 00000000 fd:00 7 {path}\nRss: {rss} kB\nAnonymous: {changed} kB\nVmFlags: rd\n"
        for n, (mode, path, rss, changed) in enumerate(lines, 1)
    )
    assert list(_clean_mappings(text)) == [(0x1000, 0x1800, 8192)]
    assert drop_clean_pages(tmp_path / "no such file") == 0


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux tells what is mapped")
def test_pages_of_libraries_are_given_back_and_come_again() -> None:
    done = subprocess.run([sys.executable, "-c", GIVE_BACK], capture_output=True, text=True, timeout=120, check=True)
    before, given, after, same = json.loads(done.stdout)
    assert same
    assert after < before // 2
    assert given > (before - after) * 1024 // 2
