"""The memory and the devices that this machine has for a run, and its owner's limits on their use."""

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
    """Return the bytes of 512M, 1.5G, 300MiB or a plain number; units are powers of 1024. Raises ConfigError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"--max-memory {text!r}: write it as a number of bytes, or with K, M or G behind it: 512M")
    number, unit = match.groups()
    nbytes = float(number) * 1024 ** (" kmgt".index(unit.lower()) if unit else 0)
    if not 1 <= nbytes < _MOST:
        raise ConfigError(f"--max-memory {text[:80]!r}: must be at least 1 byte, and less than {_MOST:g}")
    return int(nbytes)


def device_for(config: RunConfig, owners: str | None, warn: Callable[[str], None]) -> str:
    """Return where this client computes: its owner's choice, else the run's.

    Raises ConfigError if there is no such device.
    """
    if owners is not None:
        return pick_device(owners, "--device", warn)
    try:
        return pick_device(config.client.device, "client.device", warn)
    except ConfigError as error:
        raise ConfigError(f"{error}; its owner may choose another one with --device or SL_DEVICE") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryUse:
    """Bytes of memory, used and free."""

    used: int  # by this process, resident
    free: int  # available without swapping
    total: int  # of the device, or the limit of its container or service

    @classmethod
    def now(cls, proc: Path = Path("/proc"), cgroup: Path = _CGROUP) -> MemoryUse:
        """Read the kernel's numbers; the limit of a control group replaces the device's memory where it is less."""
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
    """Limits that the owner of a device sets for a client."""

    threads: int | None = None  # None: the run's number
    memory: int | None = None  # bytes that the process may use; None: all that there is

    def set_threads(self, config: RunConfig) -> None:
        """Set the number of torch's threads."""
        torch.set_num_threads(self.threads or config.run.threads)

    def check(self, config: RunConfig, measure: Callable[[], MemoryUse] = MemoryUse.now) -> None:
        """Raise ConfigError, before anything is built, unless a client's weights and what trains them fit in memory.

        A network of the user's own is not checked, because nothing is known of it yet.
        """
        if not is_user_code(config.model.name):
            self._compare(config, at_rest(config), measure())

    def check_auxiliary(self, config: RunConfig, nbytes: int, measure: Callable[[], MemoryUse] = MemoryUse.now) -> None:
        """Raise ConfigError unless an auxiliary network fits whose weights take `nbytes`."""
        optimizer = config.client.aux_optimizer or config.client.optimizer
        need = Footprint(weights=nbytes, gradients=nbytes, optimizer=nbytes * optimizer.moments, activations=0)
        self._compare(config, need, measure())

    def check_inference(self, config: RunConfig, measure: Callable[[], MemoryUse] = MemoryUse.now) -> None:
        """Raise ConfigError unless a client for inference fits: weights without gradients, and batches of samples."""
        need = trial_of(config)
        if not is_user_code(config.model.name):
            need += weights_below(config)
        self._compare(config, need, measure())

    def check_built(
        self, config: RunConfig, network: Network, measure: Callable[[], MemoryUse] = MemoryUse.now
    ) -> None:
        """Raise ConfigError unless a client fits whose network is built: now the activations are known too."""
        try:
            need = footprint_of(config, network)
        except Exception as error:  # user code may raise anything
            raise ConfigError(f"model {config.model.name!r} does not run on {config.input}: {error!r}") from error
        self._compare(config, need, measure())

    def _compare(self, config: RunConfig, need: Footprint, have: MemoryUse) -> None:
        if self.memory is not None and have.used + need.needed > self.memory:
            raise ConfigError(f"{_numbers(config, need, have)}; --max-memory is {mib(self.memory)}")
        if need.needed > have.free + have.total // 20:  # with a margin of a twentieth, as free memory is an estimate
            raise ConfigError(f"{_numbers(config, need, have)}; that is not enough")


NO_LIMITS = DeviceLimits()


def _numbers(config: RunConfig, need: Footprint, have: MemoryUse) -> str:
    """Return the memory that is needed and that there is, as text."""
    activations = f"{FACTOR} × {mib(need.activations)} activations" if need.activations else "and activations besides"
    return (
        f"model {config.model.name!r} cut at {config.model.cut!r} with batches of {config.data.batch_size} "
        f"does not fit: {mib(have.used)} are in use already, its segment needs {mib(need.needed)} more "
        f"({mib(need.weights)} weights, {mib(need.gradients)} gradients, {mib(need.optimizer)} optimiser, "
        f"{activations}), which makes {mib(have.used + need.needed)}; this device has {mib(have.total)}, "
        f"{mib(have.free)} of them free"
    )


def mib(nbytes: float) -> str:
    """Return bytes as text in MiB, the unit of --max-memory."""
    return f"{nbytes / MiB:,.1f} MiB"


def _field(path: Path, name: str) -> int:
    """Return the bytes in a line `name: 12 kB`."""
    line = next(line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith(name + ":"))
    return 1024 * int(line.split()[1])


def _groups(proc: Path, cgroup: Path) -> list[Path]:
    """Return the folders of this process's control group and of its parents."""
    try:
        lines = (proc / "self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    own = next((line[3:] for line in lines if line.startswith("0::")), "/")
    folder = cgroup / own.strip("/")
    return [folder, *(f for f in folder.parents if f.is_relative_to(cgroup))]
