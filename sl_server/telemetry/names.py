"""Names that metrics, files and reports share. Pure data: code that only needs a name does not load Prometheus."""

from __future__ import annotations

# The phases of one training step, in the order in which they happen.
PHASES = ("client_forward", "encode", "wire", "queue_wait", "server_compute", "decode", "client_backward")
# The values of the label `reason` of sl_rejected_total.
REASONS = (
    *("version", "full", "shard", "identity", "revoked", "tls", "protocol", "limit", "over", "replaced", "forgotten"),
    *("headers", "crowded", "silent", "rate", "slow", "data", "model"),
)
