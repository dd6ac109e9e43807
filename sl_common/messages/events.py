"""Events of the coordinator beside the messages of clients, and entries that only event logs have.

All values are frozen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sl_common.messages.training import Aligned, ToServer


@dataclass(frozen=True, kw_only=True, slots=True)
class Joined:
    """A new process of a client has joined. `shard` and `shards` are those that it asks for."""

    shard: int | None = None
    shards: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Left:
    """A client has left; its unfinished work is discarded."""

    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Tick:
    """Time, as an event."""

    now: float  # seconds since the run began


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """A checkpoint is durable. Checkpoints are made between waves and numbered from 1 with them."""

    number: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Restored:
    """The coordinator was restored from a checkpoint. Only in event logs."""

    number: int
    now: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Advanced:
    """The coordinator advanced between two events, with these results. Only in event logs."""

    said: tuple[MessageDigest, ...] = ()  # digests of the messages to send
    # Digests by tensor name, if a wave or a round has just ended
    weights: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class MessageDigest:
    """One message to one client as an event log holds it: every field as its value or a digest, tensors by name."""

    client: str
    kind: str
    fields: Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stopped:
    """The operator or an error ended the run. Only in event logs."""

    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Failed:
    """The entry before this one raised an error in the coordinator. Only in event logs."""

    error: str


Event = ToServer | Joined | Left | Tick | Aligned | Saved
Logged = Event | Advanced | Restored | Stopped | Failed
