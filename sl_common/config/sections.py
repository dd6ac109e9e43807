"""The sections of a run's configuration, one class each; every key has its default and its description.

The server's section has a file of its own.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, PositiveInt, field_validator, model_validator

from sl_common.dealing import LastBatch
from sl_common.partition import Iid, Partition
from sl_common.training.optim import Optimizer, TrainingConfig
from sl_common.value import Value

Natural = Annotated[int, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
MAX_CLIENTS = 1 << 14  # clients of one run, and shards of its data
Clients = Annotated[int, Field(gt=0, le=MAX_CLIENTS)]
MAX_SAMPLE = 1 << 24  # numbers in one sample


class Run(Value):
    """The run as a whole: name, seed, length, number of clients, checkpoints, and the answer to a lost client."""

    name: str = Field("run", description="Name of the run; its run directory is called after it.")
    seed: Natural = Field(0, description="Seed of every random draw: equal seeds give equal runs.")
    rounds: int = Field(10, gt=0, lt=1 << 32, description="Number of rounds.")
    clients: Clients = Field(
        1,
        description="Number of clients at which the run starts; more may join while the data have shards for them.",
    )
    threads: int = Field(
        1,
        gt=0,
        le=1024,
        description="Intra-op threads of torch on every participant; another number changes the last bits.",
    )
    min_clients: Clients = Field(1, description="Least number of clients with which a round may begin.")
    below_min: Literal["wait", "end"] = Field(
        "wait", description="With fewer clients than min_clients: wait for more, or end the run."
    )
    grace_s: float = Field(
        30.0, gt=0, description="Seconds for which a client may be away; after that it counts as lost."
    )
    checkpoints: Literal["wave", "round", "never"] = Field(
        "wave", description="When the server writes a checkpoint: after each wave, after each round, or never."
    )
    rejoin_s: float = Field(
        60.0,
        gt=0,
        description="Seconds for which a server that went back to a checkpoint waits for the clients to come back.",
    )
    on_lost: Literal["drop", "redo"] = Field(
        "drop",
        description="When a client is lost: go on without it, or go back to the last checkpoint and wait for it.",
    )
    redo_limit: Natural = Field(
        3,
        description="Rollbacks that one client may cause before a wave that it finished is durable again; after that "
        "it is dropped, and may come back. 0: none.",
    )

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        if not name or not name.isprintable() or "/" in name:
            raise ValueError("the run directory is called after it: one printable line without '/'")
        return name


class Model(Value):
    """The network, and the place of the cut in it."""

    name: str = Field(
        "cnn", description='Name of a built-in model, or your own model function as "package.module:function".'
    )
    cut: int | str = Field(
        1, description="Place of the cut: the number of blocks on the client, or the name of the last of them."
    )
    differs: Literal["refuse", "accept"] = Field(
        "refuse", description="A client that built another network than the server is refused or accepted."
    )
    args: dict[str, Any] = Field(default_factory=dict, description="Further arguments of the model function.")
    input: tuple[PositiveInt, ...] | None = Field(
        None, description="Shape of one sample, for data of your own; known for the data sets that ship."
    )
    classes: Annotated[int, Field(gt=0, le=1 << 20)] | None = Field(
        None, description="Number of classes, for data of your own; known for the data sets that ship."
    )

    @field_validator("input")
    @classmethod
    def _fits(cls, input: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if input is not None and (len(input) > 8 or math.prod(input) > MAX_SAMPLE):
            raise ValueError(f"a sample has at most 8 sides and {MAX_SAMPLE} numbers")
        return input


class DataConfig(Value):
    """The training data, and the way they are dealt to the clients."""

    name: str = Field(
        "digits",
        description="Name of a data set that ships (digits, fashion-mnist, cifar10, cifar100), or your own function "
        'on the client as "package.module:function".',
    )
    partition: Partition = Field(Iid(), description="How the training set is divided into shards.")
    shards: Clients | None = Field(
        None, description="Number of shards into which the data are dealt; by default run.clients."
    )
    digest: Sha256 | None = Field(
        None,
        description="Digest that the data set must have, as `sl-client digest` prints it; by default that of the first "
        "client.",
    )
    differs: Literal["refuse", "accept"] = Field(
        "refuse",
        description="A client that loaded another data set, or normalises it in another way, is refused or accepted.",
    )
    augment: Literal["none", "crop_flip"] = Field(
        "none",
        description="Augmentation of training images on the client; crop_flip pads by 4, crops and flips at random.",
    )
    batch_size: int = Field(64, gt=0, le=1 << 20, description="Samples in one batch.")
    last_batch: LastBatch = Field(
        "keep",
        description="The smaller batch at the end of an epoch is kept or dropped; merge: a remainder of one sample "
        "joins the batch before it.",
    )
    max_samples: PositiveInt | None = Field(
        None,
        description="Most training samples that one client may report, and most test samples of data of your own.",
    )


class WaveConfig(Value):
    """A client's training in one wave, as a number of epochs or a number of batches."""

    epochs: PositiveInt | None = Field(None, description="Epochs of its data that a client trains in one wave.")
    steps: PositiveInt | None = Field(None, description="Batches that a client trains in one wave; in place of epochs.")

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if self.epochs is not None and self.steps is not None:
            raise ValueError(f"give epochs or steps, not both (epochs = {self.epochs}, steps = {self.steps})")
        return self

    def batches(self, per_epoch: int) -> int:
        """Return the number of batches in one wave of a client that has `per_epoch` batches in an epoch."""
        return self.steps or (self.epochs or 1) * per_epoch


def check_device(device: str) -> str:
    """Return the name of a device. Raise ValueError if it is none."""
    if not _DEVICE.fullmatch(device):
        raise ValueError(f"must be auto, cpu, cuda or cuda:N, not {device!r}")
    return device


_DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]{1,3})?")
DeviceName = Annotated[str, AfterValidator(check_device)]  # auto: a GPU if the machine that computes has one


class ClientConfig(TrainingConfig):
    """The clients' segments and their training."""

    device: DeviceName = Field(
        "auto",
        description="Device of every client: auto, cpu, cuda or cuda:N; the owner of a machine has the last word "
        "(`sl-client run --device`).",
    )
    wave: WaveConfig = Field(WaveConfig(), description="How much a client trains in one wave.")
    initial: Literal["shared", "own"] = Field(
        "shared", description="All lower segments begin with the same weights, or each client's with its own."
    )
    window: int = Field(
        4,
        gt=0,
        le=1024,
        description="Batches that one client may have under way; each of them takes memory on the server.",
    )
    aux_optimizer: Optimizer | None = Field(
        None, description="Optimiser of the auxiliary network; by default that of the lower segment."
    )


class Eval(Value):
    """Evaluation on held-out data, through the split network."""

    every: Natural = Field(1, description="Rounds between two evaluations; 0: only after the last round.")
    samples: Natural = Field(
        2000,
        description="Test samples in one evaluation where lower segments are private: the same ones for every client, "
        "and all of them after the last round. 0: all.",
    )


class MetricsConfig(Value):
    """The run's metrics for Prometheus."""

    clients: Natural = Field(200, description="Clients that get time series of their own; all others share one.")
    budget_mb: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="Megabytes on the wire, both ways, that the run should stay below; an alert says if it does not.",
    )
