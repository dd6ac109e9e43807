"""A run's configuration as one frozen object, and the rules that hold between its sections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from pydantic import Field, model_validator

from sl_common.codec import Link
from sl_common.config.cautions import cautions_of
from sl_common.config.known_data import KNOWN_DATA
from sl_common.config.reading import config_from_json, config_from_toml
from sl_common.config.sections import ClientConfig, DataConfig, Eval, MetricsConfig, Model, Run
from sl_common.config.server_section import ServerConfig
from sl_common.dealing import Deal
from sl_common.imports import is_user_code
from sl_common.partition import OwnData
from sl_common.protocol import Keep, Protocol
from sl_common.seeds import Draw
from sl_common.suggestions import did_you_mean
from sl_common.value import Value


class RunConfig(Value):
    """Everything that defines a run.

    The server's copy is the one source of truth; each client gets it when it joins.
    """

    run: Run = Field(Run(), description="The run as a whole.")
    model: Model = Field(Model(), description="The network and its cut.")
    data: DataConfig = Field(DataConfig(), description="Training data, and how they are dealt to the clients.")
    protocol: Protocol = Field(Protocol(), description="The training algorithm, as a record of six values.")
    codec: Link = Field(Link(), description="The codec of each kind of tensor.")
    client: ClientConfig = Field(ClientConfig(), description="Clients: device, waves, training of their segments.")
    server: ServerConfig = Field(ServerConfig(), description="Server: device, training of the head, limits.")
    eval: Eval = Field(Eval(), description="Evaluation on held-out data.")
    metrics: MetricsConfig = Field(MetricsConfig(), description="Metrics for Prometheus.")
    preset: str | None = Field(
        None,
        description="Name of the preset that `protocol` began from, for readers; in a file, write protocol.preset.",
    )

    @model_validator(mode="after")
    def _shape_is_known(self) -> Self:
        if self.data.name in KNOWN_DATA or (self.model.input and self.model.classes):
            return self
        if not is_user_code(self.data.name):
            hint = did_you_mean(self.data.name, KNOWN_DATA)
            raise ValueError(
                f"data.name = {self.data.name!r}: unknown data{hint} (known: {', '.join(KNOWN_DATA)}, or "
                "package.module:function)"
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
                f"data.augment = {self.data.augment!r}: crops and flips images (channels, height, width), samples "
                f"here have shape {list(self.input)}"
            )
        return self

    @model_validator(mode="after")
    def _batches_are_equal(self) -> Self:
        if self.data.last_batch == "merge" and self.protocol.head.scatter.equal_batches:
            raise ValueError(
                "data.last_batch = 'merge' makes batches of data.batch_size + 1 samples, and "
                "protocol.head.scatter.unequal = 'error' needs batches of one size: say 'drop' here or 'mean' there"
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
        """Return the batches of a client with this many training samples.

        The smaller last one is left out if all batches must be of one size.
        """
        drops = self.protocol.head.scatter.equal_batches
        return Deal(samples, self.data.batch_size, "drop" if drops else self.data.last_batch)

    @property
    def largest_batch(self) -> int:
        """Largest number of samples in a training batch, and so in a message."""
        size = self.data.batch_size
        return size + 1 if self.data.last_batch == "merge" and size > 1 else size

    @property
    def sharded(self) -> bool:
        """False if every client brings data of its own."""
        return not isinstance(self.data.partition, OwnData)

    @property
    def shards(self) -> int:
        """Number of shards into which the data are dealt."""
        return self.data.shards or self.run.clients

    @property
    def cautions(self) -> list[str]:
        """Warnings about choices that are allowed and have gone wrong for others, one sentence each."""
        return cautions_of(self.protocol, self.data, self.client.wave, self.run.clients)

    @property
    def infer_codec(self) -> Link:
        """Codecs after the run: activations as in it; weights and scores exact, so that a digest can be checked."""
        return Link(up=self.codec.up)

    def draw_of(self, shard: int) -> Draw:
        """Return the first parts of the name of every draw that one client's codecs make, on both sides."""
        return (self.run.seed, shard)

    def to_json(self) -> str:
        """Return the configuration as JSON, for the wire and the run directory; `from_json` reads it back."""
        return self.model_dump_json()

    @classmethod
    def from_json(cls, text: str) -> RunConfig:
        """Return the configuration that `to_json` wrote. Raise ConfigError with the key that is wrong."""
        return config_from_json(cls, text)

    @classmethod
    def from_toml(cls, text: str, overrides: Sequence[str] = ()) -> RunConfig:
        """Return the configuration of a TOML text and of `a.b=c` overrides, which win over it.

        Raise ConfigError with the key that is wrong and its closest match.
        """
        return config_from_toml(cls, text, overrides)
