"""Small configurations drawn at random, sensible and not, and networks of a user's own that they name."""

from __future__ import annotations

import random

from torch import Tensor, nn

from sl_common.config.presets import PRESETS
from sl_common.config.run_config import RunConfig
from sl_common.errors import ConfigError

MODELS = (
    'model.name = "mlp"\nmodel.args = { hidden = [12, 8] }',
    'model.name = "mlp"\nmodel.args = { hidden = [12, 8], batch_norm = true }',
    'model.name = "cnn"\nmodel.args = { channels = [2, 3] }',
    'model.name = "cnn"',
    'model.name = "cnn"\nmodel.args = { batch_norm = true }',
    'model.name = "cnn_lrn"',
    'model.name = "cnn_emnist"',
    'model.name = "resnet16"',
    *(
        f'model.name = "cutlayer_nets:net"\nmodel.args = {{ kind = "{kind}" }}'
        for kind in ("plain", "instance", "unkept", "squeezed", "flat", "dropout", "wide")
    ),
)
CODECS = (
    '{ kind = "identity" }',
    '{ kind = "float16" }',
    '{ kind = "float8" }',
    '{ kind = "topk", r = 0.9 }',
    '{ kind = "topk", r = 0.0 }',
    '{ kind = "randtopk", r = 0.5 }',
    '{ kind = "mask", r = 0.0 }',
    '{ kind = "uniform", bits = 4 }',
    '{ kind = "masked" }',
    '{ kind = "deflate", of = { kind = "float16" } }',
    '{ kind = "feedback", of = { kind = "topk", r = 0.9 } }',
)
PARTITIONS = (
    '{ kind = "iid" }',
    '{ kind = "dirichlet", alpha = 0.3 }',
    '{ kind = "dirichlet", alpha = 5.0, min_samples = 3 }',
    '{ kind = "dirichlet", alpha = 1.0, min_samples = 60 }',
    '{ kind = "shards", per_client = 2 }',
    '{ kind = "own" }',
)
OPTIONS = (
    'protocol.barrier = { kind = "all" }',
    'protocol.barrier = { kind = "each" }',
    'protocol.barrier = { kind = "in_turn", unit = "batch" }',
    'protocol.barrier = { kind = "quorum", fraction = 0.5, timeout_s = 0.01 }',
    'protocol.waves = { kind = "sequential", shuffle = true }',
    'protocol.waves = { kind = "parallel", fraction = 0.5 }',
    'protocol.head.scatter = { kind = "averaged", fraction = 1.0 }',
    'protocol.head.scatter = { kind = "averaged", fraction = 1.0, unequal = "mean" }',
    'protocol.head.copies = "per_client"',
    'protocol.head.mix = { kind = "mixup" }',
    'protocol.head.loss = "softmax_bce"',
    'protocol.head.weights = "data"',
    'protocol.learner = { kind = "local" }',
    'protocol.learner = { kind = "split" }',
    'protocol.learner = { kind = "split_local", aux = { kind = "classifier", form = "head" } }',
    'protocol.learner = { kind = "split_local", aux = { kind = "decoder" } }',
    'protocol.learner = { kind = "local_loss", send_every = 2, upload = "first" }',
    'protocol.learner = { kind = "local_loss", send_every = 3, aux = { kind = "classifier", form = "pooled" } }',
    'protocol.learner = { kind = "local_loss", train_aux = false }',
    'protocol.gate = { kind = "periodic", k = 2 }',
    'protocol.gate = { kind = "always", record = 1, align_every = 1 }',
    'protocol.gate = { kind = "always", record = 9, align_every = 1 }',
    'protocol.merge = { kind = "keep" }',
    'protocol.merge = { kind = "average", parts = ["lower", "aux"] }',
    'client.initial = "own"',
    "client.window = 1",
    'client.optimizer = { kind = "adam", lr = 0.001 }',
    "server.alignment = { epochs = 1, batch_size = 4 }",
    "server.recordings = { memory_mb = 0 }",
    "model.classes = 11",
    "model.classes = 10",
    "model.input = [64]",
    "model.input = [1, 8, 8]",
    "model.input = [1, 4, 16]",
    "data.max_samples = 5",
    "data.max_samples = 2000",
    "eval.samples = 1",
    "eval.every = 0",
)


def drawn(random: random.Random) -> tuple[list[str], RunConfig | None]:
    """The lines of a configuration, and what they make; None if they are refused as they are read."""
    clients, batch = random.randint(1, 3), random.choice((1, 2, 3, 4, 5, 7, 8, 16, 64, 300, 1 << 17))
    partition = random.choice(PARTITIONS)
    shards = random.choice((clients, 37, 71, 127, 287, 288, 359, 500, 719, 1000, 1438, 2000))
    large = "own" in partition or shards < 30
    if random.random() < 0.4:  # a last batch of one for some
        each = 1438 if "own" in partition else 1438 // max(shards, clients)
        batch = random.choice([size for size in range(1, each + 2) if each % size < 2][-4:] or [1])
    wave = f"{{ steps = {random.randint(1, 6)} }}" if large or random.random() < 0.3 else "{ epochs = 1 }"
    lines = [
        f'protocol.preset = "{random.choice(list(PRESETS))}"',
        f"run.clients = {clients}",
        f"run.rounds = {random.choice((1, 1, 2))}",
        f"run.seed = {random.randint(0, 9)}",
        f"data.batch_size = {batch}",
        f"data.partition = {partition}",
        f"data.shards = {max(shards, clients)}",
        f"client.wave = {wave}",
        f"model.cut = {random.choice((1, 1, 1, 1, 2, 2, 2, 3))}",
        "server.alignment = { epochs = 2 }",
        *random.choice(MODELS).splitlines(),
    ]
    if random.random() < 0.4:
        lines.append(f'data.last_batch = "{random.choice(("drop", "merge"))}"')
    if random.random() < 0.2:
        lines.append('data.augment = "crop_flip"')
    coded = [direction for direction in ("up", "down", "state") if random.random() < 0.3]
    lines += [f"codec.{direction} = {random.choice(CODECS)}" for direction in coded]
    lines += random.sample(OPTIONS, random.choice((0, 0, 1, 1, 2, 3)))
    overrides = [line.replace(" = ", "=", 1) for line in lines]
    try:
        return lines, RunConfig.from_toml("", overrides)
    except ConfigError:
        return lines, None


class Squeezed(nn.Module):
    """Forgets that a batch may have one sample."""

    def forward(self, x: Tensor) -> Tensor:
        return x.squeeze()


def net(input: tuple[int, ...], classes: int, kind: str = "plain", hidden: object = ()) -> list[tuple[str, nn.Module]]:  # noqa: ARG001  (hidden is what tests of our own networks say)
    """A network with a part that minds the batch, or its own shape."""
    channels = input[0]
    flat = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, classes))
    middle: dict[str, nn.Module] = {
        "plain": nn.ReLU(),
        "instance": nn.InstanceNorm2d(4),
        "unkept": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4, track_running_stats=False), nn.Upsample(2)),
        "squeezed": nn.Sequential(nn.Flatten(), nn.Linear(4 * 36, 16), Squeezed(), nn.Unflatten(-1, (4, 2, 2))),
        "flat": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4), nn.Upsample(2)),
        "dropout": nn.Dropout(0.3),
        "wide": nn.Conv2d(4, 4, 1),
    }
    return [("first", nn.Conv2d(channels, 4, 3)), ("middle", middle[kind]), ("last", flat)]
