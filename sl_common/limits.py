"""What one peer may cost the server, as a value."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt

from sl_common.value import Value


class PeerLimits(Value):
    """Beyond these a client is slowed or refused; what each of them bounds is in SECURITY.md."""

    hello_s: PositiveFloat = 10.0  # a stream that has not said who it is by then is refused
    strangers: PositiveInt = 64  # streams that were not admitted yet; beyond, the one that is silent longest goes
    sessions: PositiveInt = 4096  # clients that are here
    hellos_per_minute: PositiveInt = 1200  # of one proven client, or of one address; more of them wait for their turn
    headers_kb: Annotated[float, Field(gt=0, le=64)] = 8.0  # gRPC metadata of a call
    frames_per_s: PositiveFloat = 5000.0  # of one stream; who is faster is slowed
    mb_per_s: PositiveFloat = 10_000.0  # the same in bytes
    stall_s: PositiveFloat = 60.0  # in which a message under way must come nearer to its end, or its client is refused
    least_bytes_per_s: PositiveFloat = 256.0  # so fast, in the mean of each stall_s
    silent_s: PositiveFloat = 600.0  # a client that says nothing for so long although it is its turn is refused
    dead_s: PositiveFloat = 30.0  # a link that carries nothing for so long, not even the answer to a probe, is broken
    read_ahead_mb: PositiveFloat = 64.0  # frames of one stream that wait for the engine; then it is not read
    read_ahead_all_mb: PositiveFloat = 1024.0  # of all streams together
