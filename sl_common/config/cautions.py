"""Warnings about configurations that are allowed and have gone wrong for others."""

from __future__ import annotations

from sl_common.config.known_data import KNOWN_DATA
from sl_common.config.sections import DataConfig, WaveConfig
from sl_common.protocol import Average, Averaged, Protocol


def cautions_of(protocol: Protocol, data: DataConfig, wave: WaveConfig, clients: int) -> list[str]:
    """Return one sentence for each risky choice."""
    head, found = protocol.head, []
    if head.lr_power >= 1.5 and clients >= 8:
        found.append(
            f"head.lr_power = {head.lr_power:g} with {clients} clients: the head's learning rate is "
            f"{clients}^{head.lr_power:g} "
            "times the configured one; training collapsed there in the paper (arXiv:2112.05929, Table 1)"
        )
    scatter = head.scatter
    if isinstance(scatter, Averaged) and scatter.fraction > 0.75 and scatter.phase == "always" and clients >= 8:
        found.append(
            f"head.scatter.fraction = {scatter.fraction:g} in every round with {clients} clients: harmful in the paper "
            "(arXiv:2112.05929, Table 3); at most 0.75, or a phase"
        )
    if _believes_clients(protocol, data, wave):
        found.append(
            "data.max_samples is not set: averages are weighted by the number of samples that each client says it has, "
            "which nobody can count in this run; one that says 1000 times as many makes the averages its own"
        )
    return found


def _believes_clients(protocol: Protocol, data: DataConfig, wave: WaveConfig) -> bool:
    """Return True if averages are weighted by sample counts that the server can neither know nor count."""
    known = data.name in KNOWN_DATA or data.max_samples is not None
    merge = protocol.merge
    by_samples = isinstance(merge, Average) and merge.weighting == "samples"
    counted = protocol.learner.sends_all and wave.steps is None
    return not known and not counted and (by_samples or protocol.head.weights == "data")
