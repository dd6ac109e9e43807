"""The server's section of a run's configuration, and the sections within it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from sl_common.config.sections import DeviceName
from sl_common.limits import PeerLimits
from sl_common.protocol.align import Alignment
from sl_common.training.optim import TrainingConfig
from sl_common.value import Value


class Budget(Value):
    """Room for the activations that the server records for rounds without clients; they stay encoded."""

    memory_mb: float = Field(4096.0, ge=0, description="Megabytes of memory for recorded activations.")
    disk_mb: float = Field(
        0.0,
        ge=0,
        description="Megabytes on disk for recorded activations that exceed the memory; the files end with the run.",
    )


class Guard(Value):
    """Bounds on the numbers that clients send.

    NaN, Inf and larger numbers are refused together with their client, or clipped (NaN becomes 0). The defaults are far
    beyond the numbers of a network in training, even on data that nobody normalised (a BatchNorm's variance of inputs
    near 1e9 is 1e18), and far below the numbers that overflow when they are squared, added up or multiplied by weights.
    "off" allows any finite number.
    """

    activations: Annotated[float, Field(gt=0)] | None = Field(
        1e12, description='Largest absolute value of an activation; "off" allows any finite number.'
    )
    weights: Annotated[float, Field(gt=0)] | None = Field(
        1e18, description='Largest absolute value of a weight; "off" allows any finite number.'
    )
    action: Literal["reject", "clip"] = Field(
        "reject", description="A client that sends a larger number is refused, or the number is clipped."
    )

    @field_validator("activations", "weights", mode="before")
    @classmethod
    def _is_off(cls, limit: object) -> object:
        return None if limit == "off" else limit


class ServerConfig(TrainingConfig):
    """The head, its training, and the server's protection against clients."""

    recordings: Budget = Field(Budget(), description="Room for recorded activations.")
    guard: Guard = Field(Guard(), description="Bounds on the numbers that clients send.")
    limits: PeerLimits = Field(PeerLimits(), description="Bounds on the load that one peer may cause.")
    alignment: Alignment = Field(
        Alignment(), description="How the server aligns the auxiliary networks that it trains for clients."
    )
    device: DeviceName = Field(
        "auto", description="Device of the head: auto, cpu, cuda or cuda:N; bits are equal only on equal devices."
    )
    channels_last: bool = Field(
        False,
        description="Keep the head's images in memory as (B, H, W, C): faster convolutions on most machines, but other "
        "last bits.",
    )
    reply_first: bool = Field(
        True,
        description="Reply to clients before the gradients of the head's large layers are computed; false takes less "
        "memory.",
    )
