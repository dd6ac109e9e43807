"""What a configuration means before it is run: the cuts, a step's exact bytes, the client's memory.

Bytes are those of real frames, made by the same endpoint that a run uses: a full batch of noise through the untrained network, as
the second of a wave. Where a codec's bytes depend on the values, its bounds stand beside them. In a long run the numbers of frame, step and round take a few bytes more, and a client on the network adds its timings (about 50).
"""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import nn

from sl_common.codec import Codec, Coding
from sl_common.codec.words import words
from sl_common.config.presets import PRESETS
from sl_common.config.run_config import RunConfig
from sl_common.copied import copied
from sl_common.errors import ConfigError
from sl_common.host.devices import pick_device
from sl_common.host.progress import size
from sl_common.messages.training import Gradient, Newest, Smashed
from sl_common.models import Block, join
from sl_common.network.contents import Tie, ties_of
from sl_common.network.footprint import Footprint, kept_by, nbytes_of
from sl_common.network.network import Network, auxiliary_fit, message_limit
from sl_common.protocol import At, Averaged, LocalLoss
from sl_common.protocol.align import AlignmentSamples
from sl_common.seeds import torch_generator
from sl_common.training.segment import Segment
from sl_common.wire import Endpoint, Frame
from sl_common.wire.endpoint import GRPC_PREFIX
from sl_server.core.preflight import most_in_batch, preflight

MEASURED = 128  # samples that an alignment is measured on, at most


@dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
    """One step's tensor in one direction, encoded from random input through the untrained network."""

    codec: str
    plain: int  # bytes as float32
    encoded: int  # bytes of the codec alone
    least: int  # the codec's bounds; equal to `encoded` where nothing depends on the values
    most: int
    wire: int  # serialized gRPC messages with their 5-byte prefixes; labels included

    @property
    def exact(self) -> bool:
        """The same for every batch of this size."""
        return self.least == self.most

    def __str__(self) -> str:
        return ("" if self.exact else "≈ ") + size(self.wire)


@dataclass(frozen=True, kw_only=True, slots=True)
class CutOption:
    """One place where the network could be cut."""

    cut: int
    after: str
    shape: tuple[int, ...]  # of one sample
    up: Traffic  # one step's Smashed
    down: Traffic  # its Gradient
    lower_bytes: int
    client_memory: int  # weights, gradients, optimiser state and what autograd keeps of one batch; an auxiliary's too


@dataclass(frozen=True, kw_only=True, slots=True)
class Aligning:
    """What the server's alignments take, estimated from one batch of noise on this machine's CPU."""

    samples: int  # in a client's memory, once it is full
    times: int  # in the run, over all clients
    seconds: float  # of one, with a full memory
    aux_bytes: int  # down to a client each time

    def __str__(self) -> str:
        return (
            f"alignment of one client's auxiliary network ({size(self.aux_bytes)}) on {self.samples} samples: about {self.seconds:.1f} s "
            f"on this machine's CPU; {self.times} of them in this run, about {self.times * self.seconds:.0f} s of work beside the training"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What `sl-server check` says."""

    config: RunConfig
    cuts: list[CutOption]
    chosen: int
    head_bytes: int
    device: str  # of the head on this machine, or why there is none such here
    aligning: Aligning | None  # where the server aligns auxiliary networks
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

    def show(self, console: Console, *, resolved: bool) -> None:
        """For people."""
        config = self.config
        if resolved:
            console.print_json(json.dumps(config.model_dump(mode="json")))
        console.print(
            f"run {config.run.name!r}: {config.run.rounds} rounds, {config.run.clients} clients, {config.preset or 'own protocol'}, "
            f"model {config.model.name} on {config.data.name} {config.input}, batch {config.data.batch_size}"
        )
        console.print(
            f"devices: server.device = {config.server.device} is {self.device} on this machine; "
            f"client.device = {config.client.device}"
            + (", a GPU where one has it" if config.client.device == "auto" else "")
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
                str(c.up),
                str(c.down),
                size(c.lower_bytes),
                size(c.client_memory),
            )
        console.print(table)
        own = next(cut for cut in self.cuts if cut.cut == self.chosen)
        console.print(_traffic_table(own))
        if getattr(config.protocol.learner, "send_every", 1) > 1:
            console.print(_uploads(config))
        console.print(f"the head has {size(self.head_bytes)}")
        if self.aligning is not None:
            console.print(str(self.aligning))
        if not self.config.protocol.timing_free:
            console.print(
                "note: barrier each on a shared head: the result depends on the order in which batches arrive"
            )
        for tie in self.ties:
            console.print(f"tied: {tie}")
        for text in (*self.config.cautions, *self.found):
            console.print(f"warning: {text}")
        if isinstance(scatter := config.protocol.head.scatter, Averaged):
            console.print(_broadcast(scatter, own.down.wire, config.run.clients))
        preset = PRESETS.get(config.preset or "")
        if preset is not None:
            console.print(f"traffic of one pass over the data: {preset.traffic}")


def _uploads(config: RunConfig) -> str:
    """How many of a wave's batches cross the cut."""
    learner, steps = config.protocol.learner, config.client.wave.steps
    assert isinstance(learner, LocalLoss)
    every = learner.send_every
    group = "sends nothing" if learner.skips else f"sends its {learner.upload} one"
    wave = "" if steps is None else f": {len(learner.sent(steps))} of the {steps} of a wave"
    return f"one batch of every {every} is sent{wave}; a last group of fewer than {every} {group} (learner.partial)"


def _broadcast(scatter: Averaged, down: int, clients: int) -> str:
    """The accounting of the paper, which no unicast stream can have."""
    sharing = len(scatter.sharing(list(range(clients)), At(seed=0)))
    messages = clients - sharing + 1 if sharing > 1 else clients
    return (
        f"{sharing} of {clients} clients share a gradient: a step sends {clients * down:,} bytes down to all of them; "
        f"with one broadcast to those that share, as the paper counts, {messages * down:,}"
    )


def _traffic_table(cut: CutOption) -> Table:
    table = Table(title=Text("one step's traffic at this cut, bytes"))
    for column in ("", "codec", "as float32", "encoded", "ratio", "on the wire"):
        table.add_column(column, justify="left" if column in ("", "codec") else "right")
    for direction, t in (("up", cut.up), ("down", cut.down)):
        if not t.plain:
            table.add_row(
                direction, "nothing crosses" if not t.wire else "a reply, no gradient", "", "", "", f"{t.wire:,}"
            )
            continue
        encoded = f"{t.encoded:,}" if t.exact else f"≈ {t.encoded:,} ({t.least:,} to {t.most:,})"
        mark = "" if t.exact else "≈ "
        table.add_row(
            direction,
            t.codec,
            f"{t.plain:,}",
            encoded,
            f"{mark}{t.plain / max(t.encoded, 1):.2f}×",
            f"{mark}{t.wire:,}",
        )
    return table


def inspect(config: RunConfig) -> Report:
    """Try every cut of the model. Raises ConfigError if the configured one does not work."""
    network = Network.build(config)
    preflight(config, network)
    cuts = [_tried(network, cut, config) for cut in range(1, len(network.blocks))]
    possible = [cut for cut in cuts if cut is not None]
    return Report(
        config=config,
        cuts=possible,
        chosen=network.cut,
        head_bytes=nbytes_of(network.head.state_dict().values()),
        device=_device(config),
        aligning=_aligning(config, network) if config.protocol.aligns else None,
        ties=network.ties,
        found=network.cautions,
    )


def _device(config: RunConfig) -> str:
    """The server may be another machine than this one: a device that is not here is told, not refused."""
    try:
        return pick_device(config.server.device, "server.device")
    except ConfigError as error:
        return f"not there ({error})"


def _aligning(config: RunConfig, network: Network) -> Aligning:
    """Twice one batch of the alignment: the first warms up."""
    how, gate, run = config.server.alignment, config.protocol.gate, config.run
    directives = [gate.decide([], At(seed=run.seed, round=r, rounds=run.rounds)) for r in range(run.rounds)]
    record = next((d.record for d in directives if not d.warm), None) or Newest(
        samples=1
    )  # no round may be left to align in
    assert isinstance(record, Newest)
    count = min(how.batch_size, record.samples, MEASURED)
    z = torch.randn(count, *network.cut_shape, generator=torch_generator(run.seed, "check", "align"))
    memory = AlignmentSamples(z=z, y=torch.zeros(count, dtype=torch.int64), targets=torch.zeros_like(z))
    aux = Segment(copied(network.part("aux")), how.optimizer)
    took = 0.0
    for _ in range(2):
        began = time.perf_counter()
        how.model_copy(update={"epochs": 1}).run(aux, memory, (run.seed, "check"))
        took = time.perf_counter() - began
    first = next((r for r, d in enumerate(directives) if not d.warm), run.rounds)
    times = sum(d.align or r == first for r, d in enumerate(directives)) * run.clients
    seconds = took * how.epochs * record.samples / count
    return Aligning(samples=record.samples, times=times, seconds=seconds, aux_bytes=aux.nbytes)


def _tried(network: Network, cut: int, config: RunConfig) -> CutOption | None:
    """None at another place than the configured one that the network, or what goes with it, cannot be cut at."""
    try:
        return _cut(list(network.blocks), cut, config, network.weights_nbytes)
    except Exception:  # whatever the modules raise
        if cut == network.cut:
            raise
        return None


def _cut(blocks: list[Block], cut: int, config: RunConfig, weights: int) -> CutOption | None:
    """None where more than one tensor passes from block to block, or one without gradients, or where the sides would share what is trained:
    no cut there."""
    lower = join(blocks[:cut])
    try:
        ties_of({"lower": lower, "head": join(blocks[cut:])}, config.model.name, cut)
    except ConfigError:
        return None
    lower = copied(lower)
    x, z, kept = _passed(lower, config)
    if not isinstance(z, torch.Tensor) or not z.is_floating_point() or len(z) != len(x):
        return None
    z = z.detach()
    y = torch.zeros(len(x), dtype=torch.int64)
    client = config.client
    limit = message_limit(z, config.classes, weights)
    memory = Footprint.of(lower, client.optimizer, kept + nbytes_of([z]))
    chosen = getattr(config.protocol.learner, "aux", None)
    if chosen is not None:
        try:
            aux = chosen.make(auxiliary_fit(config, tuple(z.shape[1:]), cut, None))
        except ConfigError:  # fits the configured cut, not this one
            return None
        kept = kept_by(aux, z.clone().requires_grad_())[1]
        memory += Footprint.of(aux, client.aux_optimizer or client.optimizer, kept)
    return CutOption(
        cut=cut,
        after=blocks[cut - 1][0],
        shape=tuple(z.shape[1:]),
        up=_up(Smashed(step=1, z=z, y=y), config, limit),
        down=_down(z, config, limit),
        lower_bytes=nbytes_of(lower.state_dict().values()),
        client_memory=memory.segment + memory.activations,
    )


def _passed(lower: nn.Module, config: RunConfig) -> tuple[torch.Tensor, torch.Tensor, int]:
    """A batch of noise, its activations, and the bytes that autograd keeps. Where noise will not do, of zeros, on which the network was
    tried: numbers of words, for one, are neither broken nor below 0."""
    noise = torch.randn(most_in_batch(config), *config.input, generator=torch_generator(config.run.seed, "check"))
    with contextlib.suppress(Exception):  # whatever the user's modules raise
        return noise, *kept_by(lower, noise)
    zeros = torch.zeros_like(noise)
    try:
        return zeros, *kept_by(lower, zeros)
    except Exception as error:
        raise ConfigError(
            f"model {config.model.name!r} does not run on a batch of {len(zeros)} samples {config.input}: {error!r:.300}"
        ) from error


def _up(batch: Smashed, config: RunConfig, limit: int) -> Traffic:
    if config.protocol.learner.exchange == "nothing":
        return Traffic(codec="", plain=0, encoded=0, least=0, most=0, wire=0)
    client, _ = _ends(config, limit)
    return _traffic(config.codec.up, batch.z, Coding(), client.pack(batch))


def _down(z: torch.Tensor, config: RunConfig, limit: int) -> Traffic:
    """A gradient of random numbers for the same batch, where the learner asks for one."""
    client, server = _ends(config, limit)
    if config.protocol.learner.exchange != "gradient":
        asked = config.protocol.learner.exchange == "activation"
        reply = sum(len(f.data) + GRPC_PREFIX for f in server.pack(Gradient(step=1, loss=1.0))) if asked else 0
        return Traffic(codec="", plain=0, encoded=0, least=0, most=0, wire=reply)
    received = [
        server.feed(f.data) for f in client.pack(Smashed(step=1, z=z, y=torch.zeros(len(z), dtype=torch.int64)))
    ]
    batch = received[-1].message
    assert isinstance(batch, Smashed)
    dz = torch.randn(z.shape, generator=torch_generator(config.run.seed, "check", "dz")).to(z.dtype)
    return _traffic(config.codec.down, dz, Coding(like=batch.z), server.pack(Gradient(step=1, loss=1.0, dz=dz)))


def _ends(config: RunConfig, limit: int) -> tuple[Endpoint, Endpoint]:
    """Client's and server's, after welcome, begin and the first batch have been exchanged."""
    client, server = (Endpoint(side, link=config.codec, limit_bytes=limit) for side in ("client", "server"))
    client.sent = client.received = server.sent = server.received = 3
    return client, server


def _traffic(scheme: Codec, tensor: torch.Tensor, coding: Coding, frames: list[Frame]) -> Traffic:
    least, most = scheme.sizes(tensor.dtype, tuple(tensor.shape))
    return Traffic(
        codec=words(scheme),
        plain=4 * tensor.numel(),
        encoded=scheme.encode(tensor, coding).layout.nbytes,
        least=least,
        most=most,
        wire=sum(len(frame.data) + GRPC_PREFIX for frame in frames),
    )
