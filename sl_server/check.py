"""What a configuration means before it is run: the cuts, a step's exact bytes, the client's memory.

Bytes are those of real frames, made by the same endpoint that a run uses: a full batch of zeros as the second of a wave. In a
long run the numbers of frame, step and round take a few bytes more, and a client on the network adds its timings (about 50).
"""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import nn

from sl_common.config import RunConfig
from sl_common.messages import Gradient, Message, Smashed
from sl_common.models import Block, join
from sl_common.network import Network
from sl_common.presets import PRESETS
from sl_common.wire import Endpoint
from sl_common.wire.endpoint import GRPC_PREFIX
from sl_server.show import size


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    """One place where the network could be cut."""

    cut: int
    after: str
    shape: tuple[int, ...]  # of one sample
    up: int  # wire bytes of one step's Smashed
    down: int  # wire bytes of its Gradient
    lower_bytes: int
    client_memory: int  # weights, gradients, optimiser state and what autograd keeps of one batch


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What `sl-server check` says."""

    config: RunConfig
    cuts: list[Cut]
    chosen: int
    head_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        return {
            "config": self.config.model_dump(mode="json"),
            "cuts": [asdict(cut) for cut in self.cuts],
            "cut": self.chosen,
            "head_bytes": self.head_bytes,
        }

    def show(self, console: Console, *, resolved: bool) -> None:
        """For people."""
        config = self.config
        if resolved:
            console.print_json(json.dumps(config.model_dump(mode="json")))
        console.print(
            f"run {config.run.name!r}: {config.run.rounds} rounds, {config.run.clients} clients, {config.preset or 'own protocol'}, "
            f"model {config.model.name} on {config.data.name} {config.input}, batch {config.data.batch_size}"
        )
        table = Table(title=Text(f"cuts (model.cut = {config.model.cut!r} is marked)"))
        for column in ("cut", "after", "smashed", "up/step", "down/step", "lower", "client memory"):
            table.add_column(column, justify="left" if column in ("after", "smashed") else "right")
        for c in self.cuts:
            mark = "→ " if c.cut == self.chosen else ""
            table.add_row(
                f"{mark}{c.cut}",
                c.after,
                str(c.shape),
                size(c.up),
                size(c.down),
                size(c.lower_bytes),
                size(c.client_memory),
            )
        console.print(table)
        own = next(cut for cut in self.cuts if cut.cut == self.chosen)
        console.print(f"a step sends {own.up:,} bytes up and {own.down:,} down; the head has {size(self.head_bytes)}")
        if not self.config.protocol.timing_free:
            console.print(
                "note: barrier each on a shared head: the result depends on the order in which batches arrive"
            )
        preset = PRESETS.get(config.preset or "")
        if preset is not None:
            console.print(f"traffic of one pass over the data: {preset.traffic}")


def inspect(config: RunConfig) -> Report:
    """Try every cut of the model. Raises ConfigError if the configured one does not work."""
    network = Network.build(config)
    cuts = [_cut(list(network.blocks), cut, config, network.limit_bytes) for cut in range(1, len(network.blocks))]
    possible = [cut for cut in cuts if cut is not None]
    return Report(config=config, cuts=possible, chosen=network.cut, head_bytes=_nbytes(network.head))


def _cut(blocks: list[Block], cut: int, config: RunConfig, limit: int) -> Cut | None:
    """None where more than one tensor passes from block to block, or one without gradients: no cut there."""
    lower = copy.deepcopy(join(blocks[:cut]))
    x = torch.zeros(config.data.batch_size, *config.input)
    kept = 0

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    with torch.random.fork_rng(devices=[]), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        z = lower(x)
    if not isinstance(z, torch.Tensor) or not z.is_floating_point() or len(z) != len(x):
        return None
    z = z.detach()
    y = torch.zeros(len(x), dtype=torch.int64)
    parameters = sum(p.numel() * p.element_size() for p in lower.parameters() if p.requires_grad)
    states = {"sgd": 1 if getattr(config.client.optimizer, "momentum", 0) else 0}.get(config.client.optimizer.kind, 2)
    return Cut(
        cut=cut,
        after=blocks[cut - 1][0],
        shape=tuple(z.shape[1:]),
        up=_wire_bytes("client", Smashed(step=1, z=z, y=y), config, limit),
        down=_wire_bytes("server", Gradient(step=1, loss=1.0, dz=z), config, limit),
        lower_bytes=_nbytes(lower),
        client_memory=_nbytes(lower) + parameters * (1 + states) + kept + z.numel() * z.element_size(),
    )


def _wire_bytes(side: Any, message: Message, config: RunConfig, limit: int) -> int:
    endpoint = Endpoint(side, link=config.codec, limit_bytes=limit)
    endpoint.sent = endpoint.received = 3  # welcome, begin and the first batch have been exchanged
    frames = endpoint.pack(message)
    return sum(len(frame.data) + GRPC_PREFIX for frame in frames)


def _nbytes(module: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in module.state_dict().values())
