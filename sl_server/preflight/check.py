"""What a configuration means before it is run: the cuts, a step's exact bytes, the client's memory."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sl_common.config.run_config import RunConfig
from sl_common.copied import copied
from sl_common.errors import ConfigError
from sl_common.host.devices import pick_device
from sl_common.network.contents import Tie
from sl_common.network.footprint import nbytes_of
from sl_common.network.network import Network
from sl_server.core.preflight import preflight
from sl_server.preflight.alignment_cost import AlignmentCost, measure_alignment
from sl_server.preflight.cuts import CutOption, try_cut


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckReport:
    """What `sl-server check` says."""

    config: RunConfig
    cuts: list[CutOption]
    chosen: int
    head_bytes: int
    device: str  # of the head on this machine, or why there is none such here
    aligning: AlignmentCost | None  # where the server aligns auxiliary networks
    ties: tuple[Tie, ...] = ()  # tensors that have several names
    found: tuple[str, ...] = ()  # what a trial of the network has to say

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        return {
            "config": self.config.model_dump(mode="json"),
            "cuts": [asdict(cut) for cut in self.cuts],
            "cautions": [*self.config.cautions, *self.found],
            "ties": [asdict(tie) for tie in self.ties],
            "cut": self.chosen,
            "head_bytes": self.head_bytes,
            "devices": {"server": self.device, "client": self.config.client.device},
            "alignment": None if self.aligning is None else asdict(self.aligning),
        }


def inspect(config: RunConfig) -> CheckReport:
    """Try every cut of the model. Raises ConfigError if the configured one does not work."""
    network = Network.build(config)
    preflight(config, network)
    cuts = [try_cut(network, cut, config) for cut in range(1, len(network.blocks))]
    possible = [cut for cut in cuts if cut is not None]
    return CheckReport(
        config=config,
        cuts=possible,
        chosen=network.cut,
        head_bytes=nbytes_of(network.head.state_dict().values()),
        device=_device(config),
        aligning=measure_alignment(config, network) if config.protocol.aligns else None,
        ties=network.ties,
        found=network.cautions,
    )


def _device(config: RunConfig) -> str:
    """The server may be another machine than this one: a device that is not here is told, not refused."""
    try:
        return pick_device(config.server.device, "server.device")
    except ConfigError as error:
        return f"not there ({error})"
