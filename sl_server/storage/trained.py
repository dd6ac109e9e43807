"""A run's directory, read for inference: its configuration, and the network as the run left it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sl_common.config.run_config import RunConfig
from sl_common.copied import copied
from sl_common.errors import ConfigError, Refused, WireError
from sl_common.holdings import Build, Inputs
from sl_common.network.builds import builds_of
from sl_common.network.network import Network, trained
from sl_common.tensors import StateDict, state_digest
from sl_server.storage.inputs import read_inputs
from sl_server.storage.run_selection import is_over
from sl_server.storage.weight_set import read_weights_of


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TrainedRun:
    """A trained network that answers queries.

    `heads`: one for all clients under None, or one for each shard where clients had their own.
    """

    config: RunConfig
    network: Network
    lower: StateDict | None  # the segment that all clients shared at the end; None: each has its own
    heads: Mapping[int | None, nn.Module]
    inputs: Inputs | None = None  # description of the training data, if the clients sent it
    build: Build | None = None  # the lower segment before it got its weights

    @property
    def lower_sha256(self) -> bytes:
        """SHA-256 of the shared lower segment; empty without one."""
        return b"" if self.lower is None else state_digest(self.lower)

    def head_of(self, shard: int | None, shards: int | None) -> int | None:
        """Return the key of the head that answers a client with this shard. Raises Refused if there is none."""
        if shards not in (None, self.config.shards):
            raise Refused("shard", f"client says there are {shards} shards, this run has {self.config.shards}")
        if None in self.heads:
            return None
        if shard not in self.heads:
            asked = "say whose" if shard is None else f"there is none of shard {shard + 1}"
            known = ", ".join(str(s + 1) for s in self.heads if s is not None)
            raise Refused(
                "shard",
                f"every client of this run had a head of its own: {asked}, with --shard I/{self.config.shards} "
                f"(there are {known})",
            )
        return shard


def read_trained_run(directory: Path, warn: Callable[[str], None], device: str = "cpu") -> TrainedRun:
    """Read the network that a run left. Raises ConfigError if it does not fit its `config.json`."""
    config = config_of(directory)
    network = Network.build(config)
    (build,) = builds_of(config, network, ("lower",), nullcontext())
    states, inputs = read_weights_of(directory), read_inputs(directory)
    try:
        if "lower" in states:
            trained(network.lower, states["lower"], str(directory / "lower.safetensors"))
        heads = {
            shard: trained(copied(network.head), states[part], str(directory / f"{part}.safetensors")).to(device)
            for shard, part in _heads(states).items()
        }
    except WireError as error:
        raise ConfigError(f"{directory}: {error}") from error
    if not heads:
        raise ConfigError(
            f"{directory}: no head.safetensors here: weights are written when a run evaluates, and at its end"
        )
    if not is_over(directory):
        warn(
            f"{directory}: the run is not over: these are the weights of its last evaluation, or of when it was stopped"
        )
    return TrainedRun(
        config=config, network=network, lower=states.get("lower"), heads=heads, inputs=inputs, build=build
    )


def _heads(parts: Collection[str]) -> dict[int | None, str]:
    """Return the names of head parts by shard."""
    if "head" in parts:
        return {None: "head"}
    shards = (part.removeprefix("head-") for part in parts if part.startswith("head-"))
    return {shard: f"head-{shard}" for shard in sorted(int(text) for text in shards if text.isdecimal())}


def config_of(directory: Path) -> RunConfig:
    """Read the configuration of a run directory. Raises ConfigError if it is none."""
    path = directory / "config.json"
    try:
        return RunConfig.from_json(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{directory}: not a run directory ({error.strerror}: config.json)") from error
    except (ConfigError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict from safetensors. Raises ConfigError."""
    try:
        state: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path}: {error}") from error
    return state
