"""Compare codecs on a real tensor of a run: bytes, ratio, error. The command `sl-server codecs`."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from sl_common.codec import (
    BFloat16,
    Codec,
    Coding,
    Deflate,
    Float8,
    Float16,
    Identity,
    Layout,
    Mask,
    Masked,
    Packed,
    RandTopK,
    TopK,
    Uniform,
)
from sl_common.codec.words import words
from sl_common.config.run_config import RunConfig
from sl_common.network.network import Network
from sl_common.tensors import aligned_buffer
from sl_server.simulation.simulation import first_seat

On = Literal["activation", "gradient"]
SHOWN: tuple[Codec, ...] = (
    Identity(),
    Float16(),
    BFloat16(),
    Float8(),
    Float8(format="e4m3"),
    Float8(format="e5m2"),
    Uniform(),
    Uniform(bits=4),
    Uniform(bits=3),
    Mask(),
    Mask(r=0.9),
    Mask(r=0.9, values="float16"),
    Mask(r=0.95875, b=1),
    TopK(),
    TopK(r=0.9, values="float16"),
    TopK(r=0.99),
    RandTopK(),
    Deflate(),
    Deflate(of=Float8()),
    Deflate(of=Mask()),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class CodecRow:
    """The result of one codec on one tensor."""

    codec: str
    config: dict[str, Any]
    configured: bool  # True: this run uses the codec for such tensors
    nbytes: int
    ratio: float  # float32 bytes to encoded bytes
    error: float  # ‖x − x̂‖ / ‖x‖
    encode_ms: float
    decode_ms: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """The results of all codecs."""

    on: On
    shape: tuple[int, ...]
    zeros: float  # share of the elements
    rows: list[CodecRow]

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison for --json."""
        return asdict(self)

    def show(self, console: Console, config: RunConfig) -> None:
        """Print the comparison for people."""
        what = "a batch's activation" if self.on == "activation" else "its cut gradient"
        title = (
            f"{what}: {config.model.name} on {config.data.name} at cut {config.model.cut!r}, untrained, {self.shape}, "
            f"{self.zeros:.0%} zeros"
        )
        console.print(title)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in ("  codec", "bytes", "ratio", "error %", "enc, dec ms"):
            table.add_column(column, justify="left" if column == "  codec" else "right", no_wrap=True)
        for row in self.rows:
            table.add_row(
                Text(("→ " if row.configured else "  ") + row.codec),
                f"{row.nbytes:,}",
                f"{row.ratio:.2f}×",
                f"{100 * row.error:.3f}" if row.error else "0",
                f"{row.encode_ms:.2f}, {row.decode_ms:5.2f}",
            )
        console.print(table)
        console.print(
            "ratio: bytes as float32 to encoded bytes; error: ‖x − x̂‖ ÷ ‖x‖; times: the best of five on this "
            "machine's CPU, where codecs always run"
        )


def compare(config: RunConfig, *, on: On, data: Path | None, allowed: Collection[str] | None = None) -> Comparison:
    """Try every codec on the first batch of the first client. Raises ConfigError or DataError if there is none."""
    torch.set_num_threads(config.run.threads)
    z, dz = _tensors(config, data, allowed)
    own: Codec = config.codec.up if on == "activation" else config.codec.down
    like = _round_trip(config.codec.up, z, Coding(draw=(config.run.seed,)))
    others = [*SHOWN] if on == "activation" else [*SHOWN, Masked()]
    coding = Coding(like=like, draw=(config.run.seed,))
    x = z if on == "activation" else dz
    rows = [_row(codec, x, coding, configured=codec == own) for codec in ([] if own in others else [own]) + others]
    return Comparison(on=on, shape=tuple(x.shape), zeros=float((x == 0).float().mean()), rows=rows)


def _tensors(config: RunConfig, data: Path | None, allowed: Collection[str] | None) -> tuple[Tensor, Tensor]:
    """Return (activation, d(mean loss)/d(activation)) of one batch."""
    seat = first_seat(config, data, allowed)
    batch = next(iter(seat.data.train(0, 1)))
    z = seat.bank.get("lower").forward(batch.x, grad=False) if "lower" in seat.bank else batch.x
    head = Network.build(config, allowed).head
    leaf = z.detach().requires_grad_()
    F.cross_entropy(head(leaf), batch.y).backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    return z.detach(), leaf.grad


def _row(codec: Codec, x: Tensor, coding: Coding, *, configured: bool) -> CodecRow:
    packed = codec.encode(x, coding)
    back = _received(codec, packed, coding)
    norm = float(x.double().norm())
    return CodecRow(
        codec=words(codec),
        config=codec.model_dump(mode="json"),
        configured=configured,
        nbytes=packed.layout.nbytes,
        ratio=4 * x.numel() / max(packed.layout.nbytes, 1),
        error=float((x.double() - back.double()).norm()) / norm if norm else 0.0,
        encode_ms=_milliseconds(lambda: codec.encode(x, coding)),
        decode_ms=_milliseconds(lambda: codec.decode(packed, coding)),
    )


def _round_trip(codec: Codec, x: Tensor, coding: Coding) -> Tensor:
    return _received(codec, codec.encode(x, coding), coding)


def _received(codec: Codec, packed: Packed, coding: Coding) -> Tensor:
    """Decode as the peer does: from bytes, after checking the header."""
    layout: Layout = packed.layout
    codec.check(layout)
    data = aligned_buffer(layout.nbytes)
    data[:] = memoryview(packed.data).cast("B")
    return codec.decode(Packed(layout=layout, data=data), coding)


def _milliseconds(once: Any) -> float:
    """Return the best time of five."""
    times = []
    for _ in range(5):
        started = time.perf_counter()
        once()
        times.append(time.perf_counter() - started)
    return 1000 * min(times)
