"""Type, range and normalisation of the data that a run's clients trained on: `inputs.json`, for later inference."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sl_common.errors import ConfigError, WireError
from sl_common.holdings import Inputs
from sl_common.host.files import write_atomically

FILE = "inputs.json"


def write_inputs(folder: Path, inputs: Inputs | None) -> None:
    """Write the file, or nothing if `inputs` is None. Raises OSError."""
    if inputs is not None:
        write_atomically(folder / FILE, json.dumps(asdict(inputs), indent=2).encode() + b"\n")


def read_inputs(folder: Path) -> Inputs | None:
    """Read the file; None for a run of an older version, or one whose clients did not send these values. Raises
    ConfigError."""
    path = folder / FILE
    try:
        found = json.loads(path.read_bytes())
        mean, std = (tuple(float(number) for number in found[name]) for name in ("mean", "std"))
        inputs = Inputs(
            dtype=str(found["dtype"]),
            low=float(found["low"]),
            high=float(found["high"]),
            mean=mean,
            std=std,
            digest=str(found.get("digest", "")),
        )
        inputs.check()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, WireError) as error:
        raise ConfigError(f"{path}: not what a run trained on: {str(error)[:200]}") from error
    return inputs


def inputs_of(inputs: Inputs | None) -> dict[str, Any] | None:
    """Return the part that goes into `summary.json`."""
    return None if inputs is None else {"dtype": inputs.dtype, "low": inputs.low, "high": inputs.high}
