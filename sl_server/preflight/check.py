"""Examine a configuration before it runs: its cuts, the exact bytes of a step, the client's memory."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sl_common.config.run_config import RunConfig
from sl_common.errors import ConfigError
from sl_common.host.devices import pick_device
from sl_common.network.footprint import nbytes_of
from sl_common.network.network import Network
from sl_common.network.ties import Tie
from sl_server.core.preflight import preflight
from sl_server.preflight.alignment_cost import AlignmentCost, measure_alignment
from sl_server.preflight.cuts import CutOption, try_cut


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckReport:
    """The result of `sl-server check`."""

    config: RunConfig
    cuts: list[CutOption]
    chosen: int
    head_bytes: int
    device: str  # the head's device on this machine, or why it is not available here
    aligning: AlignmentCost | None  # None where the server aligns no auxiliary networks
    ties: tuple[Tie, ...] = ()  # tensors that have several names
    found: tuple[str, ...] = ()  # warnings from a trial of the network

    def to_dict(self) -> dict[str, Any]:
        """Return the report for --json."""
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
    """Return the head's device. A missing one is reported, not refused: the server may be another machine."""
    try:
        return pick_device(config.server.device, "server.device")
    except ConfigError as error:
        return f"not there ({error})"
