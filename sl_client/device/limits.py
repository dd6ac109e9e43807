"""What this device has for a run, and what its owner lets the client use of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from sl_common.config.run_config import RunConfig
from sl_common.errors import ConfigError
from sl_common.host.devices import pick_device
from sl_common.imports import is_user_code
from sl_common.network.footprint import FACTOR, Footprint, at_rest, footprint_of, trial_of, weights_below
from sl_common.network.network import Network

MiB = 1 << 20
_MOST = 1e18  # bytes
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(?:([kmgt])i?)?b?", re.IGNORECASE)
_CGROUP = Path("/sys/fs/cgroup")  # version 2, as seen from inside a container or a service


def parse_size(text: str) -> int:
    """Bytes of 512M, 1.5G, 300MiB or a plain number; units are powers of 1024. Raises ConfigError naming --max-memory."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"--max-memory {text!r}: write it as a number of bytes, or with K, M or G behind it: 512M")
    number, unit = match.groups()
    nbytes = float(number) * 1024 ** (" kmgt".index(unit.lower()) if unit else 0)
    if not 1 <= nbytes < _MOST:
        raise ConfigError(f"--max-memory {text[:80]!r}: must be at least 1 byte, and less than {_MOST:g}")
    return int(nbytes)


def device_for(config: RunConfig, owners: str | None, warn: Callable[[str], None]) -> str:
    """Where this client computes: as its owner says, else as the run does. Raises ConfigError if there is no such device here."""
    if owners is not None:
        return pick_device(owners, "--device", warn)
    try:
        return pick_device(config.client.device, "client.device", warn)
    except ConfigError as error:
        raise ConfigError(f"{error}; its owner may choose another one with --device or SL_DEVICE") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryUse:
    """Bytes."""

    used: int  # by this process, resident
    free: int  # what it could get without anything being swapped out
    total: int  # of the device, or what its container or service may have

    @classmethod
    def now(cls, proc: Path = Path("/proc"), cgroup: Path = _CGROUP) -> MemoryUse:
        """As the kernel says; what a group of processes may have counts where it is less than the device's own."""
        used = _field(proc / "self/status", "VmRSS")
        free, total = (_field(proc / "meminfo", name) for name in ("MemAvailable", "MemTotal"))
        for folder in _groups(proc, cgroup):
            try:
                limit = int((folder / "memory.max").read_text(encoding="utf-8"))
                free = min(free, max(0, limit - int((folder / "memory.current").read_text(encoding="utf-8"))))
            except (OSError, ValueError):  # not there, or "max"
                continue
            total = min(total, limit)
        return cls(used=used, free=free, total=total)


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceLimits:
    """What the owner of a device allows a client. None: what the run says, or all that there is."""

    threads: int | None = None
    memory: int | None = None  # bytes that the process may come to

    def set_threads(self, config: RunConfig) -> None:
        """Of torch, from now on."""
        torch.set_num_threads(self.threads or config.run.threads)

    def check(self, config: RunConfig, measure: Callable[[], MemoryUse] = MemoryUse.now) -> None:
        """Before anything is built: raise ConfigError, with the numbers, unless the weights of a client of this run fit, and what trains them.

        Of the user's own network nothing is known then.
        """
        if not is_user_code(config.model.name):
            self._compare(config, at_rest(config), measure())

    def check_auxiliary(self, config: RunConfig, nbytes: int, measure: Callable[[], MemoryUse] = MemoryUse.now) -> None:
        """The same before an auxiliary network takes so many bytes for its weights."""
        optimizer = config.client.aux_optimizer or config.client.optimizer
        need = Footprint(weights=nbytes, gradients=nbytes, optimizer=nbytes * optimizer.moments, activations=0)
        self._compare(config, need, measure())

    def check_asking(self, config: RunConfig, measure: Callable[[], MemoryUse] = MemoryUse.now) -> None:
        """The same for a client that asks a trained network: weights without what trains them, and samples that no data set of its own bounds."""
        need = trial_of(config)
        if not is_user_code(config.model.name):
            need += weights_below(config)
        self._compare(config, need, measure())

    def check_built(
        self, config: RunConfig, network: Network, measure: Callable[[], MemoryUse] = MemoryUse.now
    ) -> None:
        """With the weights in place: the same, once more, with the activations."""
        try:
            need = footprint_of(config, network)
        except Exception as error:  # the user's own modules may raise anything
            raise ConfigError(f"model {config.model.name!r} does not run on {config.input}: {error!r}") from error
        self._compare(config, need, measure())

    def _compare(self, config: RunConfig, need: Footprint, have: MemoryUse) -> None:
        if self.memory is not None and have.used + need.needed > self.memory:
            raise ConfigError(f"{_numbers(config, need, have)}; --max-memory is {mib(self.memory)}")
        if need.needed > have.free + have.total // 20:  # a twentieth: what is free now is no more than a hint
            raise ConfigError(f"{_numbers(config, need, have)}; it has not so much")


NO_LIMITS = DeviceLimits()


def _numbers(config: RunConfig, need: Footprint, have: MemoryUse) -> str:
    """What is needed, and what there is."""
    activations = f"{FACTOR} × {mib(need.activations)} activations" if need.activations else "and activations besides"
    return (
        f"model {config.model.name!r} cut at {config.model.cut!r} with batches of {config.data.batch_size} does not fit: "
        f"{mib(have.used)} are in use already, its segment needs {mib(need.needed)} more ({mib(need.weights)} weights, "
        f"{mib(need.gradients)} gradients, {mib(need.optimizer)} optimiser, {activations}), "
        f"which makes {mib(have.used + need.needed)}; this device has {mib(have.total)}, {mib(have.free)} of them free"
    )


def mib(nbytes: float) -> str:
    """For people, in the unit of the option."""
    return f"{nbytes / MiB:,.1f} MiB"


def _field(path: Path, name: str) -> int:
    """Bytes of a line `name: 12 kB`."""
    line = next(line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith(name + ":"))
    return 1024 * int(line.split()[1])


def _groups(proc: Path, cgroup: Path) -> list[Path]:
    """This process's control group and those around it."""
    try:
        lines = (proc / "self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    own = next((line[3:] for line in lines if line.startswith("0::")), "/")
    folder = cgroup / own.strip("/")
    return [folder, *(f for f in folder.parents if f.is_relative_to(cgroup))]
