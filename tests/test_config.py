"""A run's configuration: what may be written, what comes of it, and that every mistake is told in words that help."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sl_client.data import load_data
from sl_common.config.known_data import KNOWN_DATA
from sl_common.config.overrides import deep_merge
from sl_common.config.presets import PRESETS
from sl_common.config.run_config import RunConfig
from sl_common.errors import ConfigError
from sl_common.network.network import Network
from sl_common.protocol import Each, InTurn, Keep
from sl_server.preflight.check import inspect
from sl_server.storage.run_selection import read_config

# One of every member of every union, with fields that are not the default.
EVERYTHING = """
[run]
name = "all"
seed = 7
rounds = 3
clients = 4
threads = 2
grace_s = 1.5
min_clients = 2
below_min = "end"
checkpoints = "round"
rejoin_s = 7
on_lost = "redo"
redo_limit = 5
[model]
name = "mlp"
cut = "hidden1"
args = { hidden = [8, 9], dropout = 0.5 }
input = [1, 8, 8]
classes = 10
differs = "accept"
[data]
name = "package.module:function"
digest = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
differs = "accept"
partition = { kind = "dirichlet", alpha = 0.5, min_samples = 2 }
shards = 5
batch_size = 3
last_batch = "merge"
augment = "crop_flip"
max_samples = 77
[protocol]
waves = { kind = "parallel", fraction = 0.5 }
gate = { kind = "periodic", k = 3 }
barrier = { kind = "in_turn", order = "fixed", unit = "batch" }
head = { copies = "per_client", scatter = { kind = "averaged", fraction = 0.3, phase = "last", share = 0.2, unequal = "mean", reduction = "sum" }, cut_grad_scale = "global_mean", weights = "data", loss = "softmax_bce", lr_power = 0.5 }
merge = { kind = "average", parts = ["lower", "head"], every = 2, weighting = "unweighted" }
[codec]
up = { kind = "mask", r = 0.9, b = 3, signed = true }
down = { kind = "deflate", of = { kind = "uniform", bits = 4 }, level = 3 }
state = { kind = "feedback", of = { kind = "float8", format = "e4m3" } }
[client]
optimizer = { kind = "adamw", lr = 0.01, betas = [0.8, 0.9], eps = 1e-6, weight_decay = 0.1, amsgrad = true }
schedule = { kind = "step", milestones = [1, 2], gamma = 0.3 }
wave = { steps = 5 }
initial = "shared"
window = 9
device = "cuda:2"
aux_optimizer = { kind = "adam", lr = 0.3 }
[server]
optimizer = { kind = "sgd", lr = 0.2, momentum = 0.5, nesterov = true }
schedule = { kind = "cosine", floor = 0.1 }
device = "cuda:1"
reply_first = false
channels_last = true
recordings = { memory_mb = 5, disk_mb = 7 }
guard = { activations = 3.5, weights = 4.5, action = "clip" }
limits = { hello_s = 3, strangers = 5, sessions = 6, hellos_per_minute = 7, headers_kb = 4, frames_per_s = 8, mb_per_s = 9, stall_s = 11, least_bytes_per_s = 12, silent_s = 13, dead_s = 14, read_ahead_mb = 1, read_ahead_all_mb = 2 }
alignment = { epochs = 3, batch_size = 7, optimizer = { kind = "sgd", lr = 0.2 }, schedule = { kind = "cosine" }, eps = "plain", targets = "stored", head_buffers = "updated" }
[eval]
every = 0
samples = 17
[metrics]
clients = 3
budget_mb = 9.5
"""
OTHERS = [
    'data.partition = { kind = "shards", per_client = 3 }',
    'data.partition = { kind = "own" }',
    'protocol.waves = { kind = "sequential", shuffle = true }\nprotocol.merge = { kind = "handoff", parts = ["lower"] }',
    'protocol.learner = { kind = "local" }\nprotocol.merge = { kind = "average", parts = ["lower", "head"] }',
    'protocol.barrier = { kind = "all" }',
    'protocol.barrier = { kind = "quorum", fraction = 0.7, timeout_s = 2.5 }',
    'protocol.gate = { kind = "loss", threshold = 0.3, reference = "previous" }',
    'codec.up = { kind = "topk", r = 0.5, scope = "batch", key = "signed", values = "float16" }',
    'codec.down = { kind = "masked", of = { kind = "uniform", point = "middle", rounding = "stochastic" } }',
    'codec.up = { kind = "randtopk", r = 0.5, alpha = 0.3, scope = "batch", key = "signed", evaluate = "random" }',
    'protocol.learner = { kind = "split_local", mu = 0.5, aux = { kind = "decoder", form = "transposed", channels = 5, hidden = 3, loss_function = "bce" } }',
    'protocol.learner = { kind = "local_loss", send_every = 3, upload = "first", partial = "skip", aux = { kind = "classifier", form = "mlp", hidden = 7 } }',
    'protocol.learner = { kind = "local_loss", train_aux = false, aux = { kind = "classifier", form = "head", blocks = 3 } }\nprotocol.gate = { kind = "always", record = 9, align_every = 3, warm_start = 2 }\nprotocol.merge = { kind = "average", parts = ["lower", "aux"] }',
    'protocol.head.mix = { kind = "mixup", alpha = 4, partners = 2, per = "sample", detached = false }',
    "client.wave = { epochs = 3 }",
    'client.initial = "own"',
]


def refusal(toml: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_toml(toml, overrides)
    return str(caught.value)


def network_refusal(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        inspect(RunConfig.from_toml("", overrides))
    return str(caught.value)


# --- what may be written


@pytest.mark.parametrize("toml", ["", EVERYTHING, *OTHERS])
def test_every_value_survives_the_wire(toml: str) -> None:
    config = RunConfig.from_toml(toml)
    assert RunConfig.from_json(config.to_json()) == config
    assert RunConfig.from_json(config.model_dump_json(indent=2)) == config  # as in a run directory


def test_the_defaults_are_those_of_an_empty_file() -> None:
    assert RunConfig.from_toml("") == RunConfig() == RunConfig.from_json("{}")


def test_everything_differs_from_the_defaults() -> None:
    """EVERYTHING leaves out nothing, so that the round trip above is one of every key."""
    unchanged = {
        "preset",
        "protocol.waves.kind",
        "protocol.learner.kind",
        "protocol.head.mix.kind",
        "client.initial",  # own needs another merge
    }
    unchanged |= {
        "server.optimizer.kind",
        "server.optimizer.dampening",
        "server.optimizer.weight_decay",
        "client.wave.epochs",
    }
    default, given = dict(leaves(dump(""))), dict(leaves(dump(EVERYTHING)))
    assert {".".join(p) for p, value in given.items() if p in default and default[p] == value} == unchanged


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_its_protocol(name: str) -> None:
    config = RunConfig.from_toml(f'[protocol]\npreset = "{name}"')
    assert config.protocol == PRESETS[name].protocol
    assert config.preset == name
    assert RunConfig.from_json(config.to_json()) == config


def test_a_dotted_key_merges_into_the_preset() -> None:
    merge = RunConfig.from_toml('[protocol]\npreset = "splitfed_v1"\nmerge.every = 3').protocol.merge
    assert (merge.kind, merge.parts, merge.every) == ("average", ("lower", "head"), 3)


def test_the_same_kind_merges_into_the_preset() -> None:
    toml = '[protocol]\npreset = "splitfed_v2"\nbarrier = { kind = "in_turn", unit = "batch" }'
    assert RunConfig.from_toml(toml).protocol.barrier == InTurn(order="shuffled", unit="batch")


def test_another_kind_replaces_the_presets() -> None:
    """Nothing of the old kind is left: its fields would be unknown keys of the new one."""
    toml = '[protocol]\npreset = "splitfed_v2"\nbarrier = { kind = "each" }\nmerge.kind = "keep"'
    protocol = RunConfig.from_toml(toml).protocol
    assert (protocol.barrier, protocol.merge) == (Each(), Keep())


def test_what_a_preset_does_not_say_stays_the_default() -> None:
    protocol = RunConfig.from_toml('[protocol]\npreset = "fedavg"\nhead.lr_power = 1.0').protocol
    assert protocol.head == PRESETS["fedavg"].protocol.head.model_copy(update={"lr_power": 1.0})


def test_merging_leaves_its_arguments_alone() -> None:
    below, over = {"a": {"kind": "x", "b": 1}, "c": {"d": 1}}, {"a": {"kind": "y"}, "c": {"e": 2}}
    before = copy.deepcopy((below, over))
    assert deep_merge(below, over) == {"a": {"kind": "y"}, "c": {"d": 1, "e": 2}}
    assert (below, over) == before


@pytest.mark.parametrize(
    ("overrides", "key", "value"),
    [
        (["run.rounds=3"], "run.rounds", 3),
        (["run.rounds = 3"], "run.rounds", 3),
        (["run.rounds=3", "run.rounds=4"], "run.rounds", 4),
        (["run.name=a_bare-word"], "run.name", "a_bare-word"),
        (["run.name=two words"], "run.name", "two words"),
        (['run.name="3"'], "run.name", "3"),
        (["run.name=a=b"], "run.name", "a=b"),
        (["client.wave={ steps = 2 }"], "client.wave.steps", 2),
        (["protocol.preset=parallel"], "protocol.barrier.kind", "all"),
        (["protocol.preset=parallel", "protocol.barrier.kind=each"], "protocol.barrier.kind", "each"),
        (["model.args.hidden=[3, 4]"], "model.args.hidden", [3, 4]),
        (["client.optimizer.kind=adam", "client.optimizer.lr=0.5"], "client.optimizer.lr", 0.5),
        (["client.optimizer.lr=0.5", "client.optimizer.kind=adam"], "client.optimizer.lr", 0.5),
    ],
)
def test_overrides_win(overrides: list[str], key: str, value: object) -> None:
    found: Any = RunConfig.from_toml('[run]\nname = "file"\nrounds = 9\n', overrides).model_dump(mode="json")
    for part in key.split("."):
        found = found[part]
    assert found == value


def test_an_override_of_another_kind_replaces_the_files() -> None:
    config = RunConfig.from_toml(
        '[client]\noptimizer = { kind = "adam", betas = [0.5, 0.5] }', ["client.optimizer.kind=sgd"]
    )
    assert config.client.optimizer.kind == "sgd"


# --- mistakes: each names the key as it was written, its value, and what would do


@pytest.mark.parametrize(
    ("toml", "told"),
    [
        # keys that are not there, at every depth, inside unions too
        ("rn = 1", "rn: unknown key, did you mean 'run'?"),
        ("run.round = 3", "run.round: unknown key, did you mean 'rounds'?"),
        ("protocol.wave.kind = 'parallel'", "protocol.wave: unknown key, did you mean 'waves'?"),
        ("protocol.head.copy = 'shared'", "protocol.head.copy: unknown key, did you mean 'copies'?"),
        (
            "protocol.barrier = { kind = 'in_turn', oder = 'fixed' }",
            "protocol.barrier.oder: unknown key, did you mean 'order'?",
        ),
        (
            "data.partition = { kind = 'dirichlet', alpa = 1 }",
            "data.partition.alpa: unknown key, did you mean 'alpha'?",
        ),
        ("data.partition = { kind = 'dirichlet', alpa = 1 }", "data.partition.alpha: missing"),
        (
            "client.optimizer = { kind = 'adam', momentum = 1 }",
            "client.optimizer.momentum: unknown key (known here: kind, lr, betas",
        ),
        (
            "client.schedule = { kind = 'step', milstones = [1] }",
            "client.schedule.milstones: unknown key, did you mean 'milestones'?",
        ),
        ("codec.upp = { kind = 'identity' }", "codec.upp: unknown key, did you mean 'up'?"),
        ("codec.up = { kind = 'identity', level = 1 }", "codec.up.level: unknown key (known here: kind)"),
        ("eval.evry = 1", "eval.evry: unknown key, did you mean 'every'?"),
        # values
        ("run.rounds = 0", "run.rounds = 0: must be greater than 0"),
        ("run.seed = -1", "run.seed = -1: must be greater than or equal to 0"),
        ("run.threads = 0", "run.threads = 0: must be greater than 0"),
        ("run.grace_s = 0", "run.grace_s = 0: must be greater than 0"),
        ("run.grace_s = inf", "run.grace_s = inf: must be a finite number"),
        ("run.rounds = 'many'", "run.rounds = 'many': must be a valid integer"),
        ("run.rounds = 2.5", "run.rounds = 2.5: must be a valid integer"),
        ("run.name = 3", "run.name = 3: must be a valid string"),
        ("run.name = '../../etc'", "run.name = '../../etc': the run directory is called after it"),
        ("run = 3", "run = 3: must be a table"),
        ("data.batch_size = 0", "data.batch_size = 0: must be greater than 0"),
        ("data.partition = { kind = 'dirichlet', alpha = -1 }", "data.partition.alpha = -1: must be greater than 0"),
        ("client.optimizer = { kind = 'sgd', momentum = 1.5 }", "client.optimizer.momentum = 1.5: must be less than 1"),
        ("client.optimizer = { kind = 'adam', betas = [0.9, 2] }", "client.optimizer.betas.1 = 2: must be less than 1"),
        (
            "client.schedule = { kind = 'cosine', floor = 2 }",
            "client.schedule.floor = 2: must be less than or equal to 1",
        ),
        (
            "client.wave = { epochs = 2, steps = 5 }",
            "client.wave: give epochs or steps, not both (epochs = 2, steps = 5)",
        ),
        ("server.device = 'gpu'", "server.device = 'gpu': must be auto, cpu, cuda or cuda:N"),
        ("model.cut = 1.5", "model.cut = 1.5: must be a valid integer"),
        ("model.args = 3", "model.args = 3: must be a table"),
        ("model.input = [1, 0, 8]", "model.input.1 = 0: must be greater than 0"),
        ("protocol.head.copies = 'own'", "protocol.head.copies = 'own': must be 'shared' or 'per_client'"),
        # kinds and names
        (
            "data.partition = { kind = 'iidd' }",
            "data.partition.kind = 'iidd': unknown kind, did you mean 'iid'? (known: iid, ",
        ),
        (
            "data.partition = { alpha = 3 }",  # laid over the default, which is iid
            "data.partition.alpha: unknown key (known here: kind); of kind dirichlet it is one",
        ),
        ("client.aux_optimizer = { lr = 0.1 }", "client.aux_optimizer.kind: missing, one of: adam, adamw, sgd"),
        ("client.optimizer = { kind = 'adm' }", "client.optimizer.kind = 'adm': unknown kind, did you mean 'adam'?"),
        (
            "protocol.barrier.kind = 'in_trun'",
            "protocol.barrier.kind = 'in_trun': unknown kind, did you mean 'in_turn'?",
        ),
        (
            "protocol.merge.kind = 'fedavg'",
            "protocol.merge.kind = 'fedavg': unknown kind (known: keep, handoff, average)",
        ),
        ("codec.up.kind = 'float9'", "codec.up.kind = 'float9': unknown kind"),
        (
            "protocol.preset = 'spltfed_v1'",
            "protocol.preset = 'spltfed_v1': unknown preset, did you mean 'splitfed_v1'?",
        ),
        ("protocol.preset = ['parallel']", "protocol.preset = ['parallel']: unknown preset"),
        ("preset = 'parallel'", "preset = 'parallel': write it under [protocol]"),
        ("protocol = 'parallel'", "protocol = 'parallel': must be a table"),
        (
            "data.name = 'digit'",
            "data.name = 'digit': unknown data, did you mean 'digits'? (known: digits, fashion-mnist, cifar10, cifar100, or",
        ),
        ("data.name = 'my.set:load'", "data.name = 'my.set:load': data of your own need model.input"),
        ("data.name = 'my.set:load'\nmodel.input = [3]", "model.classes"),
        # what does not go together
        ("run.clients = 3\ndata.shards = 2", "data.shards = 2 is less than run.clients = 3"),
        ("protocol.merge.kind = 'handoff'", "merge handoff needs waves sequential"),
        ("protocol.merge = { kind = 'average', parts = ['lower', 'hed'] }", "merge.parts names 'hed'"),
        (
            "protocol.head.copies = 'per_client'\nprotocol.barrier.kind = 'all'",
            "head.copies per_client needs barrier each or in_turn",
        ),
        ("protocol.preset = 'parallel'\nprotocol.merge.kind = 'handoff'", "merge handoff needs waves sequential"),
        # not TOML at all
        ("run = [", "not TOML: "),
    ],
)
def test_a_mistake_is_told(toml: str, told: str) -> None:
    assert told in refusal(toml)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("run.rounds", "--set 'run.rounds': write it as key.subkey=value"),
        ("=3", "--set '=3': write it as key.subkey=value"),
        ("a b=3", "--set 'a b=3': "),
        ("run.round=3", "run.round: unknown key, did you mean 'rounds'?"),
        ("run.rounds=many", "run.rounds = 'many': must be a valid integer"),
        ("run=3", "run = 3: must be a table"),
        ("run.rounds.x=3", "run.rounds: must be a valid integer"),
        ("preset=parallel", "write it under [protocol]"),
    ],
)
def test_a_mistaken_override_is_told(override: str, told: str) -> None:
    assert told in refusal("", override)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "not JSON"),
        ("3", "must be a table"),
        ("null", "must be a table"),
        ('{"run": {"round": 1}}', "run.round: unknown key, did you mean 'rounds'?"),
        ('{"protocol": {"preset": "parallel"}}', "protocol.preset: unknown key"),
    ],
)
def test_mistaken_json_is_told(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told.replace("?", r"\?")):
        RunConfig.from_json(text)


def test_two_mistakes_are_two_lines() -> None:
    assert refusal("run.round = 3\nrun.seed = -1").splitlines() == [
        "run.seed = -1: must be greater than or equal to 0",
        "run.round: unknown key, did you mean 'rounds'?",
    ]


def test_a_file_is_named_in_each_line(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("run.round = 3\nrun.seed = -1")
    with pytest.raises(ConfigError) as caught:
        read_config(path, None)
    assert [line.startswith(f"{path}: run.") for line in str(caught.value).splitlines()] == [True, True]


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "run.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=str(path)):
        read_config(path, None)


def dump(toml: str) -> dict[str, Any]:
    return RunConfig.from_toml(toml).model_dump(mode="json")


def tables(node: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every table of a resolved configuration but the user's own arguments."""
    yield path
    for key, value in node.items():
        if isinstance(value, dict) and key != "args":
            yield from tables(value, (*path, key))


def leaves(node: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every key that is no table, with its value."""
    for key, value in node.items():
        if isinstance(value, dict) and key != "args":
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


def put(node: dict[str, Any], path: tuple[str, ...], value: object) -> str:
    """The configuration as JSON with one key set."""
    changed = copy.deepcopy(node)
    inner = changed
    for part in path[:-1]:
        inner = inner[part]
    inner[path[-1]] = value
    return json.dumps(changed)


@pytest.mark.parametrize("toml", ["", EVERYTHING, *OTHERS])
def test_in_every_table_a_misspelt_key_is_told_with_the_right_one(toml: str) -> None:
    resolved = dump(toml)
    for table in tables(resolved):
        inner: Any = resolved
        for part in table:
            inner = inner[part]
        for key in inner:
            with pytest.raises(ConfigError) as caught:
                RunConfig.from_json(put(resolved, (*table, key + "x"), 1))
            assert ".".join((*table, key)) + f"x: unknown key, did you mean '{key}'?" in str(caught.value).splitlines()


def refused(text: str) -> str | None:
    """What is wrong with it, if anything."""
    try:
        RunConfig.from_json(text)
    except ConfigError as error:
        return str(error)
    return None


@pytest.mark.parametrize("value", [[], {}, {"x": {"y": 1}}, [[1]], -1, 1e300, "", "x", None, True])
def test_any_value_anywhere_is_taken_or_told(value: object) -> None:
    """Whatever stands where something else belongs, the answer is a ConfigError that names the key or one above it."""
    resolved = dump(EVERYTHING)
    for path in [*tables(resolved), *(path for path, _ in leaves(resolved))]:
        told = refused(put(resolved, path, value)) if path else None
        assert told is None or told.startswith((path[0], "data.")), (
            path,
            told,
        )  # data.shards must suffice for run.clients


# --- the model, which is tried out before anybody connects


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["model.name=cnnn"], "model.name = 'cnnn': unknown model, did you mean 'cnn'? (known: mlp, cnn, cnn_lrn,"),
        (["model.cut=0"], "model.cut = 0: outside the model, which has 4 blocks; cut must be 1 to 3"),
        (["model.cut=4"], "model.cut = 4: outside the model, which has 4 blocks; cut must be 1 to 3"),
        (["model.cut=-1"], "model.cut = -1: outside the model"),
        (
            ["model.cut=convv1"],
            "model.cut = 'convv1': no such cut, did you mean 'conv1'? (cut after one of: conv1, conv2, hidden)",
        ),
        (["model.cut=out"], "model.cut = 'out': no such cut"),  # the last block: nothing would be left for the server
        (["model.name=mlp", "model.args.hiden=[3]"], "'hiden'; it takes (input"),
        (["model.name=mlp", "model.args.hidden=[]"], "at least 2 blocks"),
        (["model.classes=11"], "model.classes = 11: data.name = 'digits' has 10 classes"),  # as every client would say
        (["model.input=[64]"], "model 'cnn' needs input (C, H, W)"),
        (["model.input=[1, 2, 2]"], "H and W at least 4"),
        (["model.name=nowhere:net"], "model.name = 'nowhere:net': cannot import 'nowhere' here"),
        (["model.name=mistakes:absent"], "module 'mistakes' has no 'absent'"),
        (["model.name=mistakes:NOT_A_FUNCTION"], "'NOT_A_FUNCTION' is a int, not a function"),
        (["model.name=mistakes:sequential"], "must return a list of at least 2 blocks, got Sequential"),
        (["model.name=mistakes:nothing"], "must return a list of at least 2 blocks, got NoneType"),
        (["model.name=mistakes:one_block"], "must return a list of at least 2 blocks"),
        (["model.name=mistakes:strings"], "block 0 must be a module or (identifier, module), got 'conv1'"),
        (["model.name=mistakes:bad_name"], "block 0 must be a module or (identifier, module)"),
        (["model.name=mistakes:twins"], "block names must differ, got ['fc', 'fc']"),
        (["model.name=mistakes:takes_nothing"], "takes (), which lacks"),
        (["model.name=mistakes:too_many_classes"], "gives (11,) per sample, data have 10 classes"),
        (["model.name=mistakes:no_batch_dimension"], "gives () per sample, data have 10 classes"),
        (
            ["model.name=mistakes:wrong_width"],
            "does not run on input (1, 8, 8): mat1 and mat2 shapes cannot be multiplied",
        ),
        (["model.name=mistakes:in_place"], "cut at 1 does not run on input (1, 8, 8)"),
        (["model.name=mistakes:in_place"], "in-place"),
        (["model.name=mistakes:integers_at_the_cut"], "floating point"),
    ],
)
def test_a_model_that_cannot_be_is_told(overrides: list[str], told: str) -> None:
    assert told in network_refusal(*overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.name=mlp", "model.args.hidden=wide"],
        ["model.name=mlp", "model.args.hidden=3"],
        ["model.name=mlp", "model.args.hidden=[-3]"],
        ["model.name=mlp", "model.args.dropout=2"],
        ["model.name=cnn", "model.args.channels=[1]"],
        ["model.name=mistakes:raises_in_forward"],
        ["model.name=mistakes:two_tensors_at_the_cut", "model.cut=2"],
        ["model.name=:net"],
        ["model.name=..:net"],
    ],
)
def test_any_model_that_cannot_be_is_told(overrides: list[str]) -> None:
    assert "model" in network_refusal(*overrides)


def test_nesterov_without_momentum_is_told() -> None:
    assert "nesterov" in refusal("client.optimizer = { kind = 'sgd', nesterov = true }")


def test_in_place_is_no_mistake_elsewhere() -> None:
    Network.build(RunConfig.from_toml("", ["model.name=mistakes:in_place", "model.cut=2"]))


def test_a_place_where_two_tensors_pass_is_no_cut() -> None:
    config = RunConfig.from_toml("", ["model.name=mistakes:two_tensors_at_the_cut", "model.cut=3"])
    assert [cut.after for cut in inspect(config).cuts] == ["flat", "one"]


@pytest.mark.parametrize("allowed", [(), ("other",), ("mistake",), ("mistakes.inner",)])
def test_code_from_a_package_that_is_not_allowed_is_not_imported(allowed: tuple[str, ...]) -> None:
    config = RunConfig.from_toml("", ["model.name=mistakes:in_place"])
    with pytest.raises(ConfigError, match=r"imports code only from allowed packages .* start it with --allow mistakes"):
        Network.build(config, allowed)


def test_data_that_are_none_are_told() -> None:
    with pytest.raises(
        ConfigError, match=r"data.name = 'mistakes:not_data': returned a Tensor, not a sl_client.data.Data"
    ):
        load_data("mistakes:not_data", None, ("mistakes",))


@pytest.mark.parametrize("name", KNOWN_DATA)
def test_the_shape_of_known_data_needs_no_data(name: str) -> None:
    config = RunConfig.from_toml("", [f"data.name={name}"])
    assert Network.build(config).classes == (100 if name == "cifar100" else 10)
    assert config.input[0] == (3 if "cifar" in name else 1)


def test_keys_of_another_machine_are_quoted_and_their_number_is_bounded() -> None:
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_json('{"a\\u001b]0;x\\u0007\\n": 1}')
    assert str(caught.value).isprintable()
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_json("{" + ", ".join(f'"key{n}": 1' for n in range(1_000)) + "}")
    assert str(caught.value).endswith("… and 980 more")


@pytest.mark.parametrize(
    "override",
    [
        "run.rounds=3\nrun.clients=9",
        "run.rounds=3\r\nrun.clients=9",
        "run.clients=9\nrun.rounds=3",
        "run.name=x\nserver.device=cuda",
        "run.rounds=3\n[server]\ndevice='cuda'",
        "[server]\ndevice='cuda'",
        "[run]#=3",
        "# run.rounds=3",
        "run.rounds#=3",
        "run.name=a\x1bb",
        "run.name=a\u2028b",
        "=3",
        "run.=3",
        "run rounds=3",
    ],
)
def test_one_override_sets_one_key(override: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        RunConfig.from_toml("", [override])


@pytest.mark.parametrize(
    ("override", "name"),
    [("run.name=a # b", "a # b"), ("run.name='a # b'", "a # b"), ('run."name"=x', "x"), (" run.name = x=y", " x=y")],
)
def test_values_may_hold_what_keys_may_not(override: str, name: str) -> None:
    assert RunConfig.from_toml("", [override]).run.name == name


SCHEMA = RunConfig.model_json_schema()
PROPERTIES = [
    (table.get("title", "RunConfig"), name, node)
    for table in (SCHEMA, *SCHEMA["$defs"].values())
    for name, node in table.get("properties", {}).items()
]


@pytest.mark.parametrize(("table", "name", "node"), PROPERTIES, ids=[f"{t}.{n}" for t, n, _ in PROPERTIES])
def test_every_key_has_a_description_of_one_sentence(table: str, name: str, node: dict[str, Any]) -> None:
    """The reference pages and an editor's hints are made of these."""
    said = node.get("description", "")
    assert said.endswith("."), f"{table}.{name} has the description {said!r}"
    assert "\n" not in said
