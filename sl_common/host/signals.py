"""Signals that both commands treat alike."""

from __future__ import annotations

import signal


def hang_up() -> tuple[signal.Signals, ...]:
    """SIGHUP, which the closing of a terminal brings, unless it is ignored as under nohup: then a run outlives its terminal."""
    return () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)
