"""Bytes of one step in each direction, from real frames: a run's endpoint packs a full batch, as the second of a wave.

Where a codec's bytes depend on the values, its bounds are given too. In a long run the numbers of frame, step and
round take a few bytes more, and a client on the network adds its timings (about 50 bytes).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sl_common.codec import Codec, Coding
from sl_common.codec.words import words
from sl_common.config.run_config import RunConfig
from sl_common.host.progress import size
from sl_common.messages.training import Gradient, Smashed
from sl_common.seeds import torch_generator
from sl_common.wire import Endpoint, Frame
from sl_common.wire.accounting import GRPC_PREFIX


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTraffic:
    """One step's tensor in one direction, encoded from random input through the untrained network."""

    codec: str
    plain: int  # bytes as float32
    encoded: int  # bytes of the codec alone
    least: int  # the codec's bounds; equal to `encoded` where nothing depends on the values
    most: int
    wire: int  # serialized gRPC messages with their 5-byte prefixes; labels included

    @property
    def exact(self) -> bool:
        """True if every batch of this size takes the same number of bytes."""
        return self.least == self.most

    def __str__(self) -> str:
        return ("" if self.exact else "≈ ") + size(self.wire)


def traffic_up(batch: Smashed, config: RunConfig, limit: int) -> StepTraffic:
    if config.protocol.learner.exchange == "nothing":
        return StepTraffic(codec="", plain=0, encoded=0, least=0, most=0, wire=0)
    client, _ = _warm_endpoints(config, limit)
    return _measured(config.codec.up, batch.z, Coding(), client.pack(batch))


def traffic_down(z: torch.Tensor, config: RunConfig, limit: int) -> StepTraffic:
    """Measure the reply to a batch: a gradient of random numbers, if the learner asks for one."""
    client, server = _warm_endpoints(config, limit)
    if config.protocol.learner.exchange != "gradient":
        asked = config.protocol.learner.exchange == "activation"
        reply = sum(len(f.data) + GRPC_PREFIX for f in server.pack(Gradient(step=1, loss=1.0))) if asked else 0
        return StepTraffic(codec="", plain=0, encoded=0, least=0, most=0, wire=reply)
    received = [
        server.feed(f.data) for f in client.pack(Smashed(step=1, z=z, y=torch.zeros(len(z), dtype=torch.int64)))
    ]
    batch = received[-1].message
    assert isinstance(batch, Smashed)
    dz = torch.randn(z.shape, generator=torch_generator(config.run.seed, "check", "dz")).to(z.dtype)
    return _measured(config.codec.down, dz, Coding(like=batch.z), server.pack(Gradient(step=1, loss=1.0, dz=dz)))


def _warm_endpoints(config: RunConfig, limit: int) -> tuple[Endpoint, Endpoint]:
    """Return the client's and the server's endpoint, after welcome, begin and the first batch were exchanged."""
    client, server = (Endpoint(side, link=config.codec, limit_bytes=limit) for side in ("client", "server"))
    for end in (client, server):
        end.delivery.sent = end.delivery.received = 3
    return client, server


def _measured(codec: Codec, tensor: torch.Tensor, coding: Coding, frames: list[Frame]) -> StepTraffic:
    least, most = codec.sizes(tensor.dtype, tuple(tensor.shape))
    return StepTraffic(
        codec=words(codec),
        plain=4 * tensor.numel(),
        encoded=codec.encode(tensor, coding).layout.nbytes,
        least=least,
        most=most,
        wire=sum(len(frame.data) + GRPC_PREFIX for frame in frames),
    )
