"""A run's configuration: one TOML file -> one frozen object, checked key by key, with every default spelled out."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import AfterValidator, Field, PositiveInt, ValidationError, field_validator, model_validator

from sl_common.bounded import check_bounds, read_json, read_toml
from sl_common.codec import Link
from sl_common.config.explain import did_you_mean, explain
from sl_common.config.overrides import complete, deep_merge, parse_override, spell_out
from sl_common.config.presets import PRESETS
from sl_common.dealing import Deal, LastBatch
from sl_common.errors import ConfigError
from sl_common.imports import is_user_code
from sl_common.limits import PeerLimits
from sl_common.partition import Iid, OwnData, Partition
from sl_common.protocol import Average, Averaged, Keep, Protocol
from sl_common.protocol.align import Alignment
from sl_common.seeds import Draw
from sl_common.training.optim import Optimizer, TrainingConfig
from sl_common.value import Value

Natural = Annotated[int, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
MAX_CLIENTS = 1 << 14  # of one run, and shards of its data
Clients = Annotated[int, Field(gt=0, le=MAX_CLIENTS)]
MAX_SAMPLE = 1 << 24  # numbers of one sample


class KnownData(NamedTuple):
    """A data set that ships with the client: a server shapes its head by it, and knows how much of it a client can have."""

    input: tuple[int, ...]  # shape of one sample
    classes: int
    train: int  # samples
    test: int
    labels: tuple[int, ...]  # training samples of each class


KNOWN_DATA: dict[str, KnownData] = {
    "digits": KnownData((1, 8, 8), 10, 1_438, 359, (151, 161, 143, 131, 147, 154, 150, 136, 127, 138)),
    "fashion-mnist": KnownData((1, 28, 28), 10, 60_000, 10_000, (6_000,) * 10),
    "cifar10": KnownData((3, 32, 32), 10, 50_000, 10_000, (5_000,) * 10),
    "cifar100": KnownData((3, 32, 32), 100, 50_000, 10_000, (500,) * 100),
}


class Run(Value):
    """What is run, and how long."""

    name: str = "run"
    seed: Natural = 0
    rounds: Annotated[int, Field(gt=0, lt=1 << 32)] = 10
    clients: Clients = 1  # start when so many are here; more may join where the data have shards for them
    threads: Annotated[int, Field(gt=0, le=1024)] = (
        1  # intra-op threads of torch on every participant; other numbers change the last bits
    )
    min_clients: Clients = 1  # to go on with a round
    below_min: Literal["wait", "end"] = "wait"  # for more clients, or the run, when there are fewer
    grace_s: Annotated[float, Field(gt=0)] = 30.0  # a client that is away for longer has left
    checkpoints: Literal["wave", "round", "never"] = "wave"  # when the server's state is made durable
    rejoin_s: Annotated[float, Field(gt=0)] = (
        60.0  # a server that went back to a checkpoint waits so long for its clients
    )
    on_lost: Literal["drop", "redo"] = (
        "drop"  # of a client: go on without it, or go back to the last checkpoint and wait for it
    )
    # Rollbacks that one client may cause before a wave that it finished is durable again; then it is dropped, and may come back. 0: none.
    redo_limit: Natural = 3

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        if not name or not name.isprintable() or "/" in name:
            raise ValueError("the run directory is called after it: one printable line without '/'")
        return name


class Model(Value):
    """The network and where it is cut."""

    name: str = "cnn"  # or the user's own: "package.module:function"
    cut: int | str = 1  # blocks on the client, or the name of the last of them
    differs: Literal["refuse", "accept"] = "refuse"  # a client that built another network than the server
    args: dict[str, Any] = Field(default_factory=dict)  # the model function's own arguments
    input: tuple[PositiveInt, ...] | None = None  # shape of one sample; known for the data sets that ship
    classes: Annotated[int, Field(gt=0, le=1 << 20)] | None = None

    @field_validator("input")
    @classmethod
    def _fits(cls, input: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if input is not None and (len(input) > 8 or math.prod(input) > MAX_SAMPLE):
            raise ValueError(f"a sample has at most 8 sides and {MAX_SAMPLE} numbers")
        return input


class DataConfig(Value):
    """What is trained on, and how it is dealt to the clients."""

    name: str = "digits"  # digits, fashion-mnist, or the user's own: "package.module:function" on the client
    partition: Partition = Iid()
    shards: Clients | None = None  # default: run.clients
    # of the set that is dealt, as `sl-client digest` prints it; default: that of the first client
    digest: Sha256 | None = None
    # a client that loaded another set than this, or normalises it otherwise
    differs: Literal["refuse", "accept"] = "refuse"
    augment: Literal["none", "crop_flip"] = "none"  # of training images on the client: pad 4, random crop, random flip
    batch_size: Annotated[int, Field(gt=0, le=1 << 20)] = 64
    last_batch: LastBatch = "keep"  # what remains of an epoch; merge: a remainder of one sample joins the batch before
    # most training samples that one client may say it has, and most test samples of data of your own
    max_samples: PositiveInt | None = None


class WaveConfig(Value):
    """How much a client trains in one wave: so many epochs of its data, or so many batches."""

    epochs: PositiveInt | None = None
    steps: PositiveInt | None = None

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if self.epochs is not None and self.steps is not None:
            raise ValueError(f"give epochs or steps, not both (epochs = {self.epochs}, steps = {self.steps})")
        return self

    def batches(self, per_epoch: int) -> int:
        """Batches in one wave of a client with so many an epoch."""
        return self.steps or (self.epochs or 1) * per_epoch


def check_device(device: str) -> str:
    """Raise ValueError unless this is the name of a device."""
    if not _DEVICE.fullmatch(device):
        raise ValueError(f"must be auto, cpu, cuda or cuda:N, not {device!r}")
    return device


_DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]{1,3})?")
DeviceName = Annotated[str, AfterValidator(check_device)]  # auto: a GPU if there is one, on the machine that computes


class ClientConfig(TrainingConfig):
    """The clients' segments."""

    device: DeviceName = "auto"  # of every client; the owner of a device has the last word (sl-client run --device)
    wave: WaveConfig = WaveConfig()
    initial: Literal["shared", "own"] = "shared"  # own: every client's lower segment begins with other weights
    window: Annotated[int, Field(gt=0, le=1024)] = (
        4  # batches that a client may have under way; each of them lies in the server's memory
    )
    aux_optimizer: Optimizer | None = None  # of the auxiliary network; by default like the lower segment's


class Budget(Value):
    """What the activations may take that the server records for silent rounds; they stay encoded."""

    memory_mb: Annotated[float, Field(ge=0)] = 4096.0
    disk_mb: Annotated[float, Field(ge=0)] = 0.0  # beyond the memory, in files that vanish with the run


class Guard(Value):
    """What clients' numbers may be: NaN, Inf and larger ones are refused, with their client, or clipped (NaN becomes 0).

    The defaults are far beyond what a network in training has, even of data that nobody normalised (a BatchNorm's variance of inputs near 1e9
    is 1e18), and far below what overflows when it is squared, added up or multiplied by weights. "off" allows any finite number.
    """

    activations: Annotated[float, Field(gt=0)] | None = 1e12  # largest absolute value; "off": any finite one
    weights: Annotated[float, Field(gt=0)] | None = 1e18
    action: Literal["reject", "clip"] = "reject"

    @field_validator("activations", "weights", mode="before")
    @classmethod
    def _is_off(cls, limit: object) -> object:
        return None if limit == "off" else limit


class ServerConfig(TrainingConfig):
    """The head."""

    recordings: Budget = Budget()
    guard: Guard = Guard()
    limits: PeerLimits = PeerLimits()
    alignment: Alignment = Alignment()  # of auxiliary networks that the server trains
    device: DeviceName = "auto"  # of the head: a GPU if there is one; bits are equal only on equal devices
    channels_last: bool = False  # the head's images in memory: faster convolutions on most machines, other last bits
    reply_first: bool = True  # before the gradients of the head's large layers are computed; false takes less memory


class Eval(Value):
    """Evaluation on held-out data, through the split network."""

    every: Natural = 1  # rounds; 0 = only after the last
    samples: Natural = (
        2000  # where lower segments are private: every client the same subset; all after the last round; 0 = all
    )


class MetricsConfig(Value):
    """What Prometheus is told of a run."""

    clients: Natural = 200  # that get series of their own; the others share one
    budget_mb: Annotated[float, Field(gt=0)] | None = (
        None  # wire bytes both ways that the run should do with; an alert says if it does not
    )


class RunConfig(Value):
    """Everything a run is. The server's is the one source of truth; it is handed to each client at join."""

    run: Run = Run()
    model: Model = Model()
    data: DataConfig = DataConfig()
    protocol: Protocol = Protocol()
    codec: Link = Link()
    client: ClientConfig = ClientConfig()
    server: ServerConfig = ServerConfig()
    eval: Eval = Eval()
    metrics: MetricsConfig = MetricsConfig()
    preset: str | None = None  # which preset `protocol` started from, for people; [protocol] preset in a file

    @model_validator(mode="after")
    def _shape_is_known(self) -> Self:
        if self.data.name in KNOWN_DATA or (self.model.input and self.model.classes):
            return self
        if not is_user_code(self.data.name):
            hint = did_you_mean(self.data.name, KNOWN_DATA)
            raise ValueError(
                f"data.name = {self.data.name!r}: unknown data{hint} (known: {', '.join(KNOWN_DATA)}, or package.module:function)"
            )
        raise ValueError(
            f"data.name = {self.data.name!r}: data of your own need model.input (one sample's shape) and model.classes"
        )

    @model_validator(mode="after")
    def _shards_suffice(self) -> Self:
        if self.sharded and self.shards < self.run.clients:
            raise ValueError(f"data.shards = {self.shards} is less than run.clients = {self.run.clients}")
        return self

    @model_validator(mode="after")
    def _crops_images(self) -> Self:
        if self.data.augment != "none" and len(self.input) != 3:
            raise ValueError(
                f"data.augment = {self.data.augment!r}: crops and flips images (channels, height, width), samples here have shape "
                f"{list(self.input)}"
            )
        return self

    @model_validator(mode="after")
    def _batches_are_equal(self) -> Self:
        if self.data.last_batch == "merge" and self.protocol.head.scatter.equal_batches:
            raise ValueError(
                "data.last_batch = 'merge' makes batches of data.batch_size + 1 samples, and protocol.head.scatter.unequal = 'error' needs "
                "batches of one size: say 'drop' here or 'mean' there"
            )
        return self

    @model_validator(mode="after")
    def _digest_is_of_one_set(self) -> Self:
        if self.data.digest is not None and not self.sharded:
            raise ValueError(
                "data.digest pins one set for all clients, but data.partition.kind = 'own' gives each its own"
            )
        return self

    @model_validator(mode="after")
    def _own_beginnings_stay_apart(self) -> Self:
        if self.client.initial == "own" and not isinstance(self.protocol.merge, Keep):
            raise ValueError(
                f"client.initial = 'own' needs protocol.merge.kind keep, not {self.protocol.merge.kind}: "
                "segments that began apart cannot be averaged or handed over"
            )
        return self

    @property
    def input(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.model.input or KNOWN_DATA[self.data.name].input

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.model.classes or KNOWN_DATA[self.data.name].classes

    def deal(self, samples: int) -> Deal:
        """The batches of a client with so many training samples; where all must be of one size, the last, smaller one is left out."""
        drops = self.protocol.head.scatter.equal_batches
        return Deal(samples, self.data.batch_size, "drop" if drops else self.data.last_batch)

    @property
    def largest_batch(self) -> int:
        """The most samples of a training batch, and of a message."""
        size = self.data.batch_size
        return size + 1 if self.data.last_batch == "merge" and size > 1 else size

    @property
    def sharded(self) -> bool:
        """False where every client brings data of its own."""
        return not isinstance(self.data.partition, OwnData)

    @property
    def shards(self) -> int:
        """Into how many shards the data are dealt."""
        return self.data.shards or self.run.clients

    @property
    def cautions(self) -> list[str]:
        """What is allowed and has gone wrong for others, one sentence each."""
        head, clients = self.protocol.head, self.run.clients
        said = []
        if head.lr_power >= 1.5 and clients >= 8:
            said.append(
                f"head.lr_power = {head.lr_power:g} with {clients} clients: the head's learning rate is {clients}^{head.lr_power:g} "
                "times the configured one; training collapsed there in the paper (arXiv:2112.05929, Table 1)"
            )
        scatter = head.scatter
        if isinstance(scatter, Averaged) and scatter.fraction > 0.75 and scatter.phase == "always" and clients >= 8:
            said.append(
                f"head.scatter.fraction = {scatter.fraction:g} in every round with {clients} clients: harmful in the paper "
                "(arXiv:2112.05929, Table 3); at most 0.75, or a phase"
            )
        if self._believes_clients:
            said.append(
                "data.max_samples is not set: averages are weighted by the number of samples that each client says it has, which "
                "nobody can count in this run; one that says 1000 times as many makes the averages its own"
            )
        return said

    @property
    def _believes_clients(self) -> bool:
        """Whether weights of averages are numbers that the server can neither know nor count."""
        protocol, known = self.protocol, self.data.name in KNOWN_DATA or self.data.max_samples is not None
        merge = protocol.merge
        by_samples = isinstance(merge, Average) and merge.weighting == "samples"
        counted = protocol.learner.sends_all and self.client.wave.steps is None
        return not known and not counted and (by_samples or protocol.head.weights == "data")

    @property
    def infer_codec(self) -> Link:
        """After the run: activations as in it; weights and scores as they are, so that a digest can be checked."""
        return Link(up=self.codec.up)

    def draw_of(self, shard: int) -> Draw:
        """What every draw of one client's codecs begins with, on both sides."""
        return (self.run.seed, shard)

    def to_json(self) -> str:
        """For the wire and the run directory; `from_json` reads it back to an equal object."""
        return self.model_dump_json()

    @classmethod
    def from_json(cls, text: str) -> RunConfig:
        """Raises ConfigError naming the key."""
        return _validate(read_json(text))

    @classmethod
    def from_toml(cls, text: str, overrides: Sequence[str] = ()) -> RunConfig:
        """The file's text, and `a.b=c` overrides that win over it. Raises ConfigError naming the key and its closest match."""
        raw = spell_out(read_toml(text), cls)
        over: dict[str, Any] = {}
        for override in overrides:  # first among themselves: a kind and its keys may come in any order
            over = deep_merge(over, spell_out(parse_override(override), cls))
        raw = deep_merge(raw, over)
        check_bounds(raw)
        return _validate(complete(_with_preset(raw), cls))


def _with_preset(raw: dict[str, Any]) -> dict[str, Any]:
    if "preset" in raw:
        raise ConfigError(f"preset = {raw['preset']!r}: write it under [protocol]")
    protocol = raw.get("protocol")
    if not isinstance(protocol, dict) or "preset" not in protocol:
        return raw
    name = protocol["preset"]
    if not isinstance(name, str) or name not in PRESETS:
        hint = did_you_mean(name, PRESETS)
        raise ConfigError(f"protocol.preset = {name!r}: unknown preset{hint} (known: {', '.join(PRESETS)})")
    fields = {key: value for key, value in protocol.items() if key != "preset"}
    base = PRESETS[name].protocol.model_dump(mode="json")
    return {**raw, "protocol": deep_merge(base, fields), "preset": name}


def _validate(raw: Any) -> RunConfig:
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(explain(error, raw, RunConfig)) from error
