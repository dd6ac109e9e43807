"""Choice of the device that a side computes on: the configured one, or a GPU if there is one."""

from __future__ import annotations

from collections.abc import Callable

import torch

from sl_common.config.sections import check_device
from sl_common.errors import ConfigError, first_line


def pick_device(asked: str, key: str, warn: Callable[[str], None] = lambda _text: None) -> str:
    """Return torch's name of a device. `auto` is the first CUDA GPU if torch can compute on it, else the CPU.

    Raises ConfigError naming `key` (a configuration key or an option) if the device does not exist or its name is
    invalid.
    """
    try:
        check_device(asked)
    except ValueError as error:
        raise ConfigError(f"{key} = {asked!r}: {error}; {what_is_there()}") from error
    if asked == "cpu":
        return asked
    if asked == "auto":
        return "cuda" if _computes(key, warn) else "cpu"
    if int(asked.partition(":")[2] or 0) >= _gpus():
        raise ConfigError(f"{key} = {asked!r}: no such device here; {what_is_there()}")
    return asked


def what_is_there() -> str:
    """Return a text with the devices that torch finds on this machine."""
    names = [f"cuda:{number} ({torch.cuda.get_device_name(number)})" for number in range(_gpus())]
    build = "" if names or torch.version.cuda else ", a build without CUDA,"
    return f"torch {torch.__version__}{build} sees {', '.join(['cpu', *names])}"


def described(device: str) -> str:
    """Return a device's name for people: `cuda (NVIDIA H200)`."""
    return device if device == "cpu" else f"{device} ({torch.cuda.get_device_name(device)})"


def _gpus() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _computes(key: str, warn: Callable[[str], None]) -> bool:
    """Return True if a computation on the GPU works: this build of torch or the driver may not support it."""
    if not _gpus():
        return False
    try:
        return torch.ones(1, device="cuda").add(1).item() == 2
    except (RuntimeError, AssertionError) as error:  # AssertionError comes from a build without CUDA
        why = first_line(error, 200)
        warn(f"{key} = 'auto' takes the CPU: torch {torch.__version__} sees a GPU and cannot use it ({why})")
        return False
