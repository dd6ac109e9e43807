"""Exit codes and other facts about processes that both commands share.

Exit codes: 0 done, 1 the run failed or ended before its last round, 2 bad usage or configuration, 3 refused by the
peer, 4 lost the peer.
"""

from __future__ import annotations

import ipaddress

from sl_common.errors import ConfigError, CutlayerError, PeerLost, Refused, WireError

INTERRUPTED = 130

# Interval at which threads switch. Engine, event loop and gRPC's own threads hand over to each other several times in a
# step; with Python's default a thread that computes keeps one with a frame to send waiting for up to 5 ms.
HAND_OVER_S = 0.0002


def exit_code(error: CutlayerError) -> int:
    """Return the exit code of the process."""
    match error:
        case ConfigError():
            return 2
        case Refused() | WireError():
            return 3
        case PeerLost():
            return 4
        case _:
            return 1


def is_loopback(address: str) -> bool:
    """Return True for HOST:PORT on this machine, where plaintext stays on the machine."""
    host = address.rpartition(":")[0].strip("[]").lower()
    if address.startswith("unix:") or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, which may be anywhere
        return False
