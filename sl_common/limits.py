"""Bounds on the load that one peer may cause on the server."""

from __future__ import annotations

from pydantic import Field, PositiveFloat, PositiveInt

from sl_common.value import Value


class PeerLimits(Value):
    """Limits beyond which a client is slowed or refused; SECURITY.md says what each of them bounds."""

    hello_s: PositiveFloat = Field(10.0, description="Seconds within which a new stream must say who it is.")
    strangers: PositiveInt = Field(
        64,
        description="Streams that are not admitted yet; above this number the one that is silent longest is refused.",
    )
    sessions: PositiveInt = Field(4096, description="Clients that may be connected at a time.")
    hellos_per_minute: PositiveInt = Field(
        1200, description="Greetings a minute from one proven client or one address; more of them wait."
    )
    headers_kb: float = Field(8.0, gt=0, le=64, description="Kilobytes of gRPC metadata in a call.")
    frames_per_s: PositiveFloat = Field(5000.0, description="Frames a second on one stream; a faster client is slowed.")
    mb_per_s: PositiveFloat = Field(
        10_000.0, description="Megabytes a second on one stream; a faster client is slowed."
    )
    stall_s: PositiveFloat = Field(
        60.0,
        description="Seconds within which a message under way must make progress; otherwise its client is refused.",
    )
    least_bytes_per_s: PositiveFloat = Field(
        256.0, description="Least progress of a message under way: bytes a second, as the mean over each stall_s."
    )
    silent_s: PositiveFloat = Field(
        600.0, description="Seconds after which a client that is silent although it is its turn is refused."
    )
    dead_s: PositiveFloat = Field(
        30.0,
        description="Seconds after which a link that carries nothing, not even the answer to a probe, is broken.",
    )
    read_ahead_mb: PositiveFloat = Field(
        64.0, description="Megabytes of one stream that may wait for the engine; then the stream is not read."
    )
    read_ahead_all_mb: PositiveFloat = Field(
        1024.0, description="Megabytes of all streams together that may wait for the engine."
    )
