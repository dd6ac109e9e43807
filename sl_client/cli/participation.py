"""`sl-client run` after its options are read. This module imports torch and gRPC, so the command imports it late."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import typer

from sl_client.cli.interruption import run_until_interrupted
from sl_client.console.show import ClientLines
from sl_client.device.limits import DeviceLimits, parse_size
from sl_client.training.runner import Runner
from sl_client.transport.access import Access
from sl_client.transport.connection import Interrupted
from sl_client.transport.stream import GrpcStream
from sl_common.errors import ConfigError, CutlayerError
from sl_common.exits import INTERRUPTED
from sl_common.host.devices import pick_device
from sl_common.host.files import write_atomically
from sl_common.host.text import printable
from sl_common.tensors import StateDict


def require_device(device: str | None) -> None:
    """Raise ConfigError before a server is asked, if this machine has no such device."""
    if device is not None:
        pick_device(device, "--device")


def owner_limits(threads: int | None, max_memory: str | None) -> DeviceLimits:
    """Return the limits that --threads and --max-memory set. Raises ConfigError."""
    return DeviceLimits(threads=threads, memory=None if max_memory is None else parse_size(max_memory))


def take_part(server: str, access: Access, show: ClientLines, save_lower: Path | None, **options: Any) -> None:
    """Run a client to its end and write its lower segment to `save_lower`; `options` are those of Runner.

    Raises what Runner does, typer.Exit after an interruption, and CutlayerError if the run ended before its last round.
    """
    runner = Runner(server, show=show, connect=partial(GrpcStream, access=access), **options)
    show.start()
    if access.tls is not None:
        from sl_client.transport.expiry import watch_expiry

        watch_expiry(server, access.tls, show.warn, lambda: runner.seat is not None)
    try:
        bye = run_until_interrupted(runner)
    except Interrupted:
        show.say("stopped", "stopped" if runner.seat is None else "stopped; the server was told")
        raise typer.Exit(INTERRUPTED) from None
    finally:
        show.stop()
        if save_lower is not None and runner.seat is not None:
            _save(runner.seat.bank.get("lower").state(), save_lower)
    runner.leave_state(finished=bye.finished)
    if not bye.finished:
        raise CutlayerError(f"the run ended before its last round: {printable(bye.reason)}")


def _save(lower: StateDict, path: Path) -> None:
    from safetensors.torch import save  # a client that trains only does not load it

    try:
        write_atomically(path, save({name: tensor.contiguous() for name, tensor in lower.items()}))
    except OSError as error:
        raise ConfigError(f"--save-lower {path}: {error.strerror or error}") from error
