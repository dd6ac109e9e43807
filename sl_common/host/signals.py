"""Signals that both commands handle in the same way."""

from __future__ import annotations

import signal


def hang_up() -> tuple[signal.Signals, ...]:
    """Return SIGHUP, which a closing terminal sends, or nothing if it is ignored, as under nohup."""
    return () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)
